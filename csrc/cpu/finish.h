// What becomes of the values of a pixel before they are stored: 16 channels at a time, the channels of a mask's word.
#pragma once

#include "../shade_fast.h"
#include "vector.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {

// Finishes and stores the channels from `channel` on, a multiple of 16, of pixel number `pixel`. With `stream` the stores
// go past the caches, for which `channels` is a multiple of 16 and `result` of 64 bytes.
inline void finish_block(Block value, const Finish& finish, std::int64_t pixel, std::int64_t channel,
                         std::int64_t channels, float* result, bool stream = false) {
  const std::int64_t place = pixel * channels + channel;
  const std::int64_t word = pixel * ((channels + kBlock - 1) / kBlock) + channel / kBlock;
  const std::int64_t count = channels - channel < kBlock ? channels - channel : kBlock;
  if (finish.bias != nullptr) {
    const Block bias = load_block(finish.bias + channel, count);
    for (int i = 0; i < kParts; ++i) value.part[i] += bias.part[i];
  }
  if (finish.residual != nullptr) {
    const Block residual = load_block(finish.residual + place, count);
    for (int i = 0; i < kParts; ++i) value.part[i] += residual.part[i];
  }
  if (finish.positive != nullptr) {
    unsigned bits = 0;
    for (int i = 0; i < kParts; ++i) bits |= positive_bits(value.part[i]) << (i * kLanes);
    finish.positive[word] = static_cast<std::uint16_t>(bits & ((1u << count) - 1u));
  }
  if (finish.relu) {
    for (int i = 0; i < kParts; ++i) value.part[i] = value.part[i] < 0.0f ? Vector{} : value.part[i];
  }
  if (finish.gate != nullptr) {
    for (int i = 0; i < kParts; ++i) {
      value.part[i] = keep(value.part[i], static_cast<unsigned>(finish.gate[word]) >> (i * kLanes));
    }
  }
  if (stream) return stream_block(result + place, value);
  store_block(result + place, value, count);
}

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
