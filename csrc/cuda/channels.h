// Values whose three channels lie next to each other, as the kernels of an image's normalisation go through them.
#pragma once

#include "../pixel.h"
#include "values.h"

namespace shade_fast::cuda {

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

}  // namespace shade_fast::cuda
