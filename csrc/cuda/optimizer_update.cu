// The optimizer update in two launches: sums of |gradient| over chunks of each image, then the update, in which each
// block adds the chunk sums of its image up again, always in the same order. 4 bytes read per value, then 13 read (14
// with shares of the step) and 8 written; up to 8 KiB of sums, read from L2, for each block.
#include "../pixel.h"
#include "launch.h"
#include "values.h"

namespace shade_fast::cuda {
namespace {

constexpr std::int64_t kMostChunks = 1024;
// A chunk holds a whole number of these.
constexpr std::int64_t kChunkUnit = 4096;
constexpr int kWarp = 32;

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

// The sum over the block's threads, for all of them, in an order that is always the same.
__device__ double sum_over_block(double own) {
  __shared__ double of_warps[kThreads / kWarp];
  for (int distance = kWarp / 2; distance > 0; distance /= 2) own += __shfl_down_sync(0xffffffffu, own, distance);
  if (threadIdx.x % kWarp == 0) of_warps[threadIdx.x / kWarp] = own;
  __syncthreads();
  double sum = of_warps[0];
  for (int warp = 1; warp < kThreads / kWarp; ++warp) sum += of_warps[warp];
  return sum;
}

__device__ double magnitude(float value) { return fabs(static_cast<double>(value)); }

// A thread adds four values up at a time, whether it reads them at once or not: the sum is the same wherever the image
// lies in memory.
template <bool kVector>
__global__ void __launch_bounds__(kThreads)
    sum_absolute(const float* __restrict__ gradient, double* __restrict__ sums, std::int64_t elements,
                 std::int64_t chunk) {
  const float* image = gradient + blockIdx.y * elements;
  const std::int64_t begin = blockIdx.x * chunk;
  const std::int64_t end = begin + chunk < elements ? begin + chunk : elements;

  double sum = 0.0;
  for (std::int64_t i = begin + 4 * threadIdx.x; i < end; i += 4 * kThreads) {
    Pack<float> four;
    if (kVector) {
      four = read(image + i);
    } else {
      for (int j = 0; j < 4; ++j) four.value[j] = i + j < end ? image[i + j] : 0.0f;
    }
    sum += (magnitude(four.value[0]) + magnitude(four.value[1])) + (magnitude(four.value[2]) + magnitude(four.value[3]));
  }
  sum = sum_over_block(sum);
  if (threadIdx.x == 0) sums[blockIdx.y * gridDim.x + blockIdx.x] = sum;
}

template <bool kVector>
__global__ void __launch_bounds__(kThreads)
    update(float* __restrict__ delta, float* __restrict__ momentum, const float* __restrict__ gradient,
           const std::uint8_t* __restrict__ clean, const std::uint8_t* __restrict__ share,
           const float* __restrict__ step, const double* __restrict__ sums, float* __restrict__ mean,
           std::int64_t elements, std::int64_t chunk, float decay, float linf) {
  double sum = 0.0;
  for (unsigned i = threadIdx.x; i < gridDim.x; i += kThreads) sum += sums[blockIdx.y * gridDim.x + i];
  const double image_mean = sum_over_block(sum) / static_cast<double>(elements);
  if (blockIdx.x == 0 && threadIdx.x == 0) mean[blockIdx.y] = static_cast<float>(image_mean);
  if (!is_finite(image_mean)) return;

  const UpdateFactors factors{inverse_of_mean(image_mean), decay, step[blockIdx.y], linf};
  const std::int64_t origin = blockIdx.y * elements;
  const std::int64_t begin = blockIdx.x * chunk;
  const std::int64_t end = begin + chunk < elements ? begin + chunk : elements;
  const auto one = [&](std::int64_t i) {
    update_pixel(delta[i], momentum[i], gradient[i], clean[i], share == nullptr ? kWholeStep : share[i], factors);
  };
  const auto group = [&](std::int64_t i) {
    const Pack<std::uint8_t> shown = read(clean + i);
    Pack<std::uint8_t> shares;
    if (share != nullptr) {
      shares = read(share + i);
    } else {
      memset(&shares, kWholeStep, sizeof shares);
    }
#pragma unroll
    for (int part = 0; part < kGroup; part += Pack<float>::kCount) {
      Pack<float> moved = read(delta + i + part);
      Pack<float> velocity = read(momentum + i + part);
      const Pack<float> slope = read(gradient + i + part);
#pragma unroll
      for (int j = 0; j < Pack<float>::kCount; ++j) {
        update_pixel(moved.value[j], velocity.value[j], slope.value[j], shown.value[part + j],
                     shares.value[part + j], factors);
      }
      write(delta + i + part, moved);
      write(momentum + i + part, velocity);
    }
  };
  over_values<kVector>(origin + begin, origin + end, threadIdx.x, kThreads, group, one);
}

}  // namespace

std::int64_t optimizer_update_scratch(std::int64_t images, std::int64_t elements) {
  return images > 0 && elements > 0 ? images * chunk_count(elements) : 0;
}

Status optimizer_update(float* delta, float* momentum, const float* gradient, const std::uint8_t* clean,
                        const std::uint8_t* share, const float* step, float* mean, double* scratch,
                        std::int64_t images, std::int64_t elements, float decay, float linf, void* stream) {
  if (images < 0 || images > kMostImages || elements < 0 || !(linf >= 0.0f)) return Status::bad_argument;
  if (images == 0) return Status::ok;
  if (elements == 0) {
    const std::size_t bytes = static_cast<std::size_t>(images) * sizeof(float);
    return status_of(cudaMemsetAsync(mean, 0, bytes, static_cast<cudaStream_t>(stream)));
  }
  const std::int64_t chunk = chunk_elements(elements), chunks = chunk_count(elements);
  const bool whole = elements % Pack<float>::kCount == 0 && aligned(gradient);
  const Status summed = launch(whole ? sum_absolute<true> : sum_absolute<false>, chunks, images, stream, gradient,
                               scratch, elements, chunk);
  if (summed != Status::ok) return summed;
  return launch(aligned(delta, momentum, gradient, clean, share) ? update<true> : update<false>, chunks, images,
                stream, delta, momentum, gradient, clean, share, step, scratch, mean, elements, chunk, decay, linf);
}

}  // namespace shade_fast::cuda
