// What becomes of the values of a pixel before they are stored.
#pragma once

#include "../../shade_fast.h"
#include "lanes.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

// Applies an epilogue to the channels from `channel` on of pixel number `pixel`, and stores them. `epilogue` is a copy of
// the caller's own, whose parts stay in registers: no store can change it.
template <typename Lanes>
SHADE_FAST_LANES void apply_and_store(const Lanes& lanes, Vector value, Epilogue epilogue, std::int64_t pixel,
                                      std::int64_t channel, std::int64_t channels, float* result) {
  const std::int64_t place = pixel * channels + channel;
  const std::int64_t word = pixel * ((channels + kBlock - 1) / kBlock) + channel / kBlock;
  const int shift = static_cast<int>(channel % kBlock);
  if (epilogue.bias != nullptr) value += lanes.load(epilogue.bias + channel);
  if (epilogue.residual != nullptr) value += lanes.load(epilogue.residual + place);
  if (epilogue.positive != nullptr) {
    const unsigned before = shift == 0 ? 0u : epilogue.positive[word];
    const unsigned bits = positive_bits(value) & lanes.present();
    epilogue.positive[word] = static_cast<std::uint16_t>(before | bits << shift);
  }
  if (epilogue.relu) value = at_least(0.0f, value);
  if (epilogue.gate != nullptr) value = keep(value, static_cast<unsigned>(epilogue.gate[word]) >> shift);
  lanes.store(result + place, value);
}

// Where no part needs to know a value's channel, a run of pixels is one long pixel.
SHADE_FAST_LANES void flatten(std::int64_t& pixels, std::int64_t& channels, const Epilogue& epilogue) {
  const bool masked = epilogue.positive != nullptr || epilogue.gate != nullptr;
  if (epilogue.bias != nullptr || (masked && channels % kBlock != 0)) return;
  channels *= pixels;
  pixels = 1;
}

// result = epilogue(value(lanes, place, channel)) for every vector of channels of a run of pixels.
template <typename Full, typename Value>
SHADE_FAST_LANES void map_pixels(std::int64_t pixels, std::int64_t channels, float* result, Epilogue epilogue,
                                 const Value& value) {
  for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
    for_channels<Full>(channels, [&](const auto& lanes, std::int64_t channel) __attribute__((always_inline)) {
      const Vector made = value(lanes, pixel * channels + channel, channel);
      apply_and_store(lanes, made, epilogue, pixel, channel, channels, result);
    });
  }
}

template <typename Value>
SHADE_FAST_LANES void map_pixels(bool stream, std::int64_t pixels, std::int64_t channels, float* result,
                                 Epilogue epilogue, const Value& value) {
  with_stores(stream, [&](auto full) { map_pixels<decltype(full)>(pixels, channels, result, epilogue, value); });
}

// apply_and_store for a block, whose channels are those of a mask's word: `channel` is a multiple of 16. With `stream`
// the stores go past the caches, for which `channels` is a multiple of 16 and `result` of 64 bytes.
inline void apply_and_store_block(Block value, const Epilogue& epilogue, std::int64_t pixel,
                                  std::int64_t channel, std::int64_t channels, float* result, bool stream = false) {
  const auto store_parts = [&](const auto& lanes_of_part) __attribute__((always_inline)) {
    for (int i = 0; i < kParts; ++i) {
      const std::int64_t first = channel + i * kLanes;
      apply_and_store(lanes_of_part(first), value.part[i], epilogue, pixel, first, channels, result);
    }
  };
  if (stream) return store_parts([](std::int64_t) { return Streamed{}; });
  if (channels - channel >= kBlock) return store_parts([](std::int64_t) { return Whole{}; });
  store_parts([&](std::int64_t first) { return First{clamp(channels - first, 0, kLanes)}; });
}

}  // namespace
}  // namespace shade_fast::cpu::SHADE_FAST_ISA
