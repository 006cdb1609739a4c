// One step of the search for the largest scale whose rounded image holds a bound: each image's interval is halved by
// the distance at its last scale, and the image at its next one is made as the network's input. 5 bytes read and 2
// written per value.
#include "../pixel.h"
#include "launch.h"
#include "values.h"

namespace shade_fast::cuda {
namespace {

// The factors of the values from value i on: gain[j % 3] is that of value i + j. An image holds a multiple of three
// values, so that a value's place in the batch says its channel.
struct ThreeChannels {
  float gain[3];
  float offset[3];

  __device__ __forceinline__ ThreeChannels(const Affine& affine, std::int64_t i) {
    const int first = static_cast<int>(i % 3);
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      // Selected, not indexed: an index that is not known in advance would put the factors into local memory.
      const int channel = first + j < 3 ? first + j : first + j - 3;
      gain[j] = channel == 0 ? affine.gain[0] : channel == 1 ? affine.gain[1] : affine.gain[2];
      offset[j] = channel == 0 ? affine.offset[0] : channel == 1 ? affine.offset[1] : affine.offset[2];
    }
  }
};

// Writes bfloat16(value(j, change)) for the kGroup values from `to` on; `change` is kept from one to the next.
template <typename Value>
__device__ __forceinline__ void write_normalized(std::uint16_t* to, Value value) {
  Pack<float> change = {};
#pragma unroll
  for (int part = 0; part < kGroup; part += Pack<std::uint16_t>::kCount) {
    Pack<std::uint16_t> normalized;
#pragma unroll
    for (int j = 0; j < Pack<std::uint16_t>::kCount; ++j) normalized.value[j] = to_bfloat16(value(part + j, change));
    write(to + part, normalized);
  }
}

// Every block narrows its image's interval for itself, and the first writes it down, elsewhere than it is read. Four
// blocks at a time leave each thread the registers that it needs.
template <bool kVector>
__global__ void __launch_bounds__(kThreads, 4)
    try_scale(const std::uint8_t* __restrict__ clean, const float* __restrict__ delta,
              const float* __restrict__ distance, const Interval* __restrict__ now, Interval* __restrict__ next,
              std::uint16_t* __restrict__ result, std::int64_t elements, float bound, bool guess, float levels,
              Affine affine) {
  const Interval interval = narrowed(now[blockIdx.y], distance[blockIdx.y], bound, guess);
  if (blockIdx.x == 0 && threadIdx.x == 0) next[blockIdx.y] = interval;

  const float gain = 255.0f * interval.scale;
  const auto one = [&](std::int64_t i) {
    const ThreeChannels channels(affine, i);
    const std::uint8_t shown = quantize_pixel(clean[i], delta[i], gain, levels);
    result[i] = to_bfloat16(normalize_pixel(shown, channels.gain[0], channels.offset[0]));
  };
  const auto group = [&](std::int64_t i) {
    const ThreeChannels channels(affine, i);
    const Pack<std::uint8_t> before = read(clean + i);
    write_normalized(result + i, [&](int j, Pack<float>& change) {
      if (j % Pack<float>::kCount == 0) change = read(delta + i + j);
      const std::uint8_t shown =
          quantize_pixel(before.value[j], change.value[j % Pack<float>::kCount], gain, levels);
      return normalize_pixel(shown, channels.gain[j % 3], channels.offset[j % 3]);
    });
  };
  const std::int64_t origin = blockIdx.y * elements;
  over_values<kVector>(origin, origin + elements, blockIdx.x * kThreads + threadIdx.x,
                       static_cast<std::int64_t>(gridDim.x) * kThreads, group, one);
}

}  // namespace

Status bisect_scale(const std::uint8_t* clean, const float* delta, const float* distance, const Interval* now,
                    Interval* next, std::uint16_t* result, std::int64_t images, std::int64_t elements, float bound,
                    bool guess, int levels, const Affine& affine, void* stream) {
  if (images < 0 || images > kMostImages || elements < 0 || elements % 3 != 0 || levels < 0 || levels > 255 ||
      !(bound >= 0.0f)) {
    return Status::bad_argument;
  }
  if (images == 0) return Status::ok;
  // An image without values has an interval all the same.
  const std::int64_t blocks = elements > 0 ? blocks_for(elements, kGroup) : 1;
  return launch(aligned(clean, delta, result) ? try_scale<true> : try_scale<false>, blocks, images, stream, clean,
                delta, distance, now, next, result, elements, bound, guess, static_cast<float>(levels), affine);
}

}  // namespace shade_fast::cuda
