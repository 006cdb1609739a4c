// Rounding to uint8 inside the L-infinity box: 5 bytes read and 1 written per value.
#include "../pixel.h"
#include "launch.h"

namespace shade_fast::cuda {
namespace {

constexpr std::int64_t kValuesPerThread = 16;
constexpr std::int64_t kMostBlocks = 1 << 16;

template <bool kVector>
__global__ void __launch_bounds__(kThreads)
    round_values(const std::uint8_t* __restrict__ clean, const float* __restrict__ delta,
                 const float* __restrict__ scale, std::uint8_t* __restrict__ result, std::int64_t elements,
                 float levels) {
  const float gain = 255.0f * scale[blockIdx.y];
  const std::int64_t origin = blockIdx.y * elements;
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
  if constexpr (kVector) {
    for (std::int64_t i = origin + 4 * thread; i < origin + elements; i += 4 * stride) {
      const uchar4 shown = *reinterpret_cast<const uchar4*>(clean + i);
      const float4 change = *reinterpret_cast<const float4*>(delta + i);
      *reinterpret_cast<uchar4*>(result + i) = {
          quantize_pixel(shown.x, change.x, gain, levels), quantize_pixel(shown.y, change.y, gain, levels),
          quantize_pixel(shown.z, change.z, gain, levels), quantize_pixel(shown.w, change.w, gain, levels)};
    }
  } else {
    for (std::int64_t i = origin + thread; i < origin + elements; i += stride) {
      result[i] = quantize_pixel(clean[i], delta[i], gain, levels);
    }
  }
}

}  // namespace

Status quantize(const std::uint8_t* clean, const float* delta, const float* scale, std::uint8_t* result,
                std::int64_t images, std::int64_t elements, int levels, void* stream) {
  if (images < 0 || images > kMostImages || elements < 0 || levels < 0 || levels > 255) return Status::bad_argument;
  if (images == 0 || elements == 0) return Status::ok;
  std::int64_t blocks = (elements + kThreads * kValuesPerThread - 1) / (kThreads * kValuesPerThread);
  if (blocks > kMostBlocks) blocks = kMostBlocks;
  const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(images));
  const bool vector = vector_aligned(delta, elements) && byte_vector_aligned(clean) && byte_vector_aligned(result);
  (vector ? round_values<true> : round_values<false>)<<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
      clean, delta, scale, result, elements, static_cast<float>(levels));
  return launch_status();
}

}  // namespace shade_fast::cuda
