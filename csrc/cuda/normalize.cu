// Between uint8 images and a network's bfloat16 input, three channels next to each other: 1 byte read (5 with a
// perturbation) and 2 written per value; back, 3 read and 1 written.
#include "channels.h"
#include "launch.h"

namespace shade_fast::cuda {
namespace {

template <bool kVector, bool kPerturbed>
__global__ void __launch_bounds__(kThreads)
    normalize_values(const std::uint8_t* __restrict__ clean, const float* __restrict__ delta,
                     std::uint16_t* __restrict__ result, std::int64_t elements, Affine affine) {
  const auto one = [&](std::int64_t i) {
    const ThreeChannels channels(affine, i);
    const float change = kPerturbed ? delta[i] : 0.0f;
    result[i] = to_bfloat16(normalize_pixel(clean[i], change, channels.gain[0], channels.offset[0]));
  };
  const auto group = [&](std::int64_t i) {
    const ThreeChannels channels(affine, i);
    const Pack<std::uint8_t> shown = read(clean + i);
    write_normalized(result + i, [&](int j, Pack<float>& change) {
      if (kPerturbed && j % Pack<float>::kCount == 0) change = read(delta + i + j);
      const float moved = kPerturbed ? change.value[j % Pack<float>::kCount] : 0.0f;
      return normalize_pixel(shown.value[j], moved, channels.gain[j % 3], channels.offset[j % 3]);
    });
  };
  const std::int64_t origin = blockIdx.y * elements;
  over_values<kVector>(origin, origin + elements, blockIdx.x * kThreads + threadIdx.x,
                       static_cast<std::int64_t>(gridDim.x) * kThreads, group, one);
}

template <bool kVector>
__global__ void __launch_bounds__(kThreads)
    denormalize_values(const std::uint16_t* __restrict__ values, const std::uint8_t* __restrict__ clean,
                       std::uint8_t* __restrict__ result, std::int64_t elements, Affine affine, float levels) {
  const auto one = [&](std::int64_t i) {
    const ThreeChannels channels(affine, i);
    result[i] = denormalize_pixel(from_bfloat16(values[i]), clean[i], channels.gain[0], channels.offset[0], levels);
  };
  const auto group = [&](std::int64_t i) {
    const ThreeChannels channels(affine, i);
    const Pack<std::uint8_t> shown = read(clean + i);
    Pack<std::uint8_t> rounded;
#pragma unroll
    for (int part = 0; part < kGroup; part += Pack<std::uint16_t>::kCount) {
      const Pack<std::uint16_t> normalized = read(values + i + part);
#pragma unroll
      for (int j = 0; j < Pack<std::uint16_t>::kCount; ++j) {
        const int channel = (part + j) % 3;
        rounded.value[part + j] = denormalize_pixel(from_bfloat16(normalized.value[j]), shown.value[part + j],
                                                    channels.gain[channel], channels.offset[channel], levels);
      }
    }
    write(result + i, rounded);
  };
  const std::int64_t origin = blockIdx.y * elements;
  over_values<kVector>(origin, origin + elements, blockIdx.x * kThreads + threadIdx.x,
                       static_cast<std::int64_t>(gridDim.x) * kThreads, group, one);
}

}  // namespace

Status normalize(const std::uint8_t* clean, const float* delta, std::uint16_t* result, std::int64_t images,
                 std::int64_t elements, const Affine& affine, void* stream) {
  if (images < 0 || images > kMostImages || elements < 0 || elements % 3 != 0) return Status::bad_argument;
  if (images == 0 || elements == 0) return Status::ok;
  const bool vector = aligned(clean, delta, result);
  const auto kernel = delta != nullptr ? (vector ? normalize_values<true, true> : normalize_values<false, true>)
                                       : (vector ? normalize_values<true, false> : normalize_values<false, false>);
  return launch(kernel, blocks_for(elements, kGroup), images, stream, clean, delta, result, elements, affine);
}

Status denormalize(const std::uint16_t* values, const std::uint8_t* clean, std::uint8_t* result, std::int64_t images,
                   std::int64_t elements, const Affine& affine, int levels, void* stream) {
  if (images < 0 || images > kMostImages || elements < 0 || elements % 3 != 0 || levels < 0 || levels > 255) {
    return Status::bad_argument;
  }
  if (images == 0 || elements == 0) return Status::ok;
  return launch(aligned(values, clean, result) ? denormalize_values<true> : denormalize_values<false>,
                blocks_for(elements, kGroup), images, stream, values, clean, result, elements, affine,
                static_cast<float>(levels));
}

}  // namespace shade_fast::cuda
