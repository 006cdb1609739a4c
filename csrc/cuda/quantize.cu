// Rounding to uint8 inside the L-infinity box: 5 bytes read and 1 written per value.
#include "../pixel.h"
#include "launch.h"
#include "values.h"

namespace shade_fast::cuda {
namespace {

template <bool kVector>
__global__ void __launch_bounds__(kThreads)
    round_values(const std::uint8_t* __restrict__ clean, const float* __restrict__ delta,
                 const float* __restrict__ scale, std::uint8_t* __restrict__ result, std::int64_t elements,
                 float levels) {
  const float gain = 255.0f * scale[blockIdx.y];
  const std::int64_t origin = blockIdx.y * elements;
  const auto one = [&](std::int64_t i) { result[i] = quantize_pixel(clean[i], delta[i], gain, levels); };
  const auto group = [&](std::int64_t i) {
    const Pack<std::uint8_t> shown = read(clean + i);
    Pack<std::uint8_t> rounded;
#pragma unroll
    for (int part = 0; part < kGroup; part += Pack<float>::kCount) {
      const Pack<float> change = read(delta + i + part);
#pragma unroll
      for (int j = 0; j < Pack<float>::kCount; ++j) {
        rounded.value[part + j] = quantize_pixel(shown.value[part + j], change.value[j], gain, levels);
      }
    }
    write(result + i, rounded);
  };
  over_values<kVector>(origin, origin + elements, blockIdx.x * kThreads + threadIdx.x,
                       static_cast<std::int64_t>(gridDim.x) * kThreads, group, one);
}

}  // namespace

Status quantize(const std::uint8_t* clean, const float* delta, const float* scale, std::uint8_t* result,
                std::int64_t images, std::int64_t elements, int levels, void* stream) {
  if (images < 0 || images > kMostImages || elements < 0 || levels < 0 || levels > 255) return Status::bad_argument;
  if (images == 0 || elements == 0) return Status::ok;
  return launch(aligned(clean, delta, result) ? round_values<true> : round_values<false>, blocks_for(elements, kGroup),
                images, stream, clean, delta, scale, result, elements, static_cast<float>(levels));
}

}  // namespace shade_fast::cuda
