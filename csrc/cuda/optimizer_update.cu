// The optimizer update in two launches: sums of |gradient| over chunks of each image, then the update, in which each
// block adds the chunk sums of its image up again, always in the same order. 4 bytes read per value, then 13 read and
// 8 written; up to 8 KiB of sums, read from L2, for each block.
#include "../pixel.h"
#include "launch.h"

namespace shade_fast::cuda {
namespace {

constexpr std::int64_t kMostChunks = 1024;
// A chunk holds a whole number of these.
constexpr std::int64_t kChunkUnit = 2048;

// Depends on the image's size alone, so that an image's sum does not depend on its batch.
std::int64_t chunk_elements(std::int64_t elements) {
  const std::int64_t shortest = (elements + kMostChunks - 1) / kMostChunks;
  const std::int64_t units = (shortest + kChunkUnit - 1) / kChunkUnit;
  return (units > 0 ? units : 1) * kChunkUnit;
}

std::int64_t chunk_count(std::int64_t elements) {
  const std::int64_t chunk = chunk_elements(elements);
  return (elements + chunk - 1) / chunk;
}

// Leaves the sum over the block's threads in values[0], for all of them to read.
__device__ void sum_over_block(double* values, double own) {
  values[threadIdx.x] = own;
  __syncthreads();
  for (int width = kThreads / 2; width > 0; width /= 2) {
    if (threadIdx.x < width) values[threadIdx.x] += values[threadIdx.x + width];
    __syncthreads();
  }
}

__device__ double magnitude(float value) { return fabs(static_cast<double>(value)); }

template <bool kVector>
__global__ void __launch_bounds__(kThreads)
    sum_absolute(const float* __restrict__ gradient, double* __restrict__ sums, std::int64_t elements,
                 std::int64_t chunk) {
  __shared__ double shared[kThreads];
  const float* image = gradient + blockIdx.y * elements;
  const std::int64_t begin = blockIdx.x * chunk;
  const std::int64_t end = begin + chunk < elements ? begin + chunk : elements;

  double sum = 0.0;
  if constexpr (kVector) {
    for (std::int64_t i = begin + 4 * threadIdx.x; i < end; i += 4 * kThreads) {
      const float4 four = *reinterpret_cast<const float4*>(image + i);
      sum += (magnitude(four.x) + magnitude(four.y)) + (magnitude(four.z) + magnitude(four.w));
    }
  } else {
    for (std::int64_t i = begin + threadIdx.x; i < end; i += kThreads) sum += magnitude(image[i]);
  }
  sum_over_block(shared, sum);
  if (threadIdx.x == 0) sums[blockIdx.y * gridDim.x + blockIdx.x] = shared[0];
}

template <bool kVector>
__global__ void __launch_bounds__(kThreads)
    update(float* __restrict__ delta, float* __restrict__ momentum, const float* __restrict__ gradient,
           const std::uint8_t* __restrict__ clean, const float* __restrict__ step, const double* __restrict__ sums,
           float* __restrict__ mean, std::int64_t elements, std::int64_t chunk, float decay, float linf) {
  __shared__ double shared[kThreads];
  double sum = 0.0;
  for (int i = threadIdx.x; i < gridDim.x; i += kThreads) sum += sums[blockIdx.y * gridDim.x + i];
  sum_over_block(shared, sum);
  const double image_mean = shared[0] / static_cast<double>(elements);
  if (blockIdx.x == 0 && threadIdx.x == 0) mean[blockIdx.y] = static_cast<float>(image_mean);
  if (!is_finite(image_mean)) return;

  const UpdateFactors factors{inverse_of_mean(image_mean), decay, step[blockIdx.y], linf};
  const std::int64_t origin = blockIdx.y * elements;
  const std::int64_t begin = blockIdx.x * chunk;
  const std::int64_t end = begin + chunk < elements ? begin + chunk : elements;
  if constexpr (kVector) {
    for (std::int64_t i = origin + begin + 4 * threadIdx.x; i < origin + end; i += 4 * kThreads) {
      float4 moved = *reinterpret_cast<const float4*>(delta + i);
      float4 velocity = *reinterpret_cast<const float4*>(momentum + i);
      const float4 slope = *reinterpret_cast<const float4*>(gradient + i);
      const uchar4 shown = *reinterpret_cast<const uchar4*>(clean + i);
      update_pixel(moved.x, velocity.x, slope.x, shown.x, factors);
      update_pixel(moved.y, velocity.y, slope.y, shown.y, factors);
      update_pixel(moved.z, velocity.z, slope.z, shown.z, factors);
      update_pixel(moved.w, velocity.w, slope.w, shown.w, factors);
      *reinterpret_cast<float4*>(delta + i) = moved;
      *reinterpret_cast<float4*>(momentum + i) = velocity;
    }
  } else {
    for (std::int64_t i = origin + begin + threadIdx.x; i < origin + end; i += kThreads) {
      update_pixel(delta[i], momentum[i], gradient[i], clean[i], factors);
    }
  }
}

}  // namespace

std::int64_t optimizer_update_scratch(std::int64_t images, std::int64_t elements) {
  return images > 0 && elements > 0 ? images * chunk_count(elements) : 0;
}

Status optimizer_update(float* delta, float* momentum, const float* gradient, const std::uint8_t* clean,
                        const float* step, float* mean, double* scratch, std::int64_t images, std::int64_t elements,
                        float decay, float linf, void* stream) {
  if (images < 0 || images > kMostImages || elements < 0 || !(linf >= 0.0f)) return Status::bad_argument;
  if (images == 0) return Status::ok;
  const cudaStream_t queue = static_cast<cudaStream_t>(stream);
  if (elements == 0) {
    const cudaError_t error = cudaMemsetAsync(mean, 0, static_cast<std::size_t>(images) * sizeof(float), queue);
    if (error == cudaSuccess) return Status::ok;
    remember_error(error);
    return Status::cuda_failure;
  }

  const std::int64_t chunk = chunk_elements(elements);
  const dim3 grid(static_cast<unsigned>(chunk_count(elements)), static_cast<unsigned>(images));
  const bool vector = vector_aligned(delta, elements) && vector_aligned(momentum, elements) &&
                      vector_aligned(gradient, elements) && byte_vector_aligned(clean);
  (vector ? sum_absolute<true> : sum_absolute<false>)<<<grid, kThreads, 0, queue>>>(gradient, scratch, elements, chunk);
  const Status summed = launch_status();
  if (summed != Status::ok) return summed;
  (vector ? update<true> : update<false>)<<<grid, kThreads, 0, queue>>>(delta, momentum, gradient, clean, step, scratch,
                                                                       mean, elements, chunk, decay, linf);
  return launch_status();
}

}  // namespace shade_fast::cuda
