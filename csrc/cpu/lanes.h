// One vector at a time along the channels of a pixel: how it is read and written, and what becomes of it before that.
#pragma once

#include <cstdint>

#include "../shade_fast.h"
#include "vector.h"

#define SHADE_FAST_LANES static inline __attribute__((always_inline))

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

typedef std::int32_t Integers __attribute__((vector_size(4 * kLanes)));
typedef std::uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef float Half __attribute__((vector_size(2 * kLanes)));
typedef double Doubles __attribute__((vector_size(4 * kLanes)));

template <typename Any>
SHADE_FAST_LANES Any load_as(const void* from) {
  Any value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

template <typename Any>
SHADE_FAST_LANES void store_as(void* to, Any value) {
  __builtin_memcpy(to, &value, sizeof value);
}

SHADE_FAST_LANES Vector bits_to_float(Integers value) { return load_as<Vector>(&value); }
SHADE_FAST_LANES Integers float_to_bits(Vector value) { return load_as<Integers>(&value); }

SHADE_FAST_LANES float sum(Vector value) {
  float lanes[kLanes];
  store_as(lanes, value);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

// sums[lane] += value[lane].
SHADE_FAST_LANES void add_to(double* sums, Vector value) {
  Half halves[2];
  store_as(halves, value);
  for (int half = 0; half < 2; ++half) {
    double* const to = sums + half * (kLanes / 2);
    store_as(to, load_as<Doubles>(to) + __builtin_convertvector(halves[half], Doubles));
  }
}

// How a vector's worth of channels is read and written: all lanes, all of them past the caches, or the first few, the
// others being 0 and their memory left alone.
struct Whole {
  Vector load(const float* from) const { return load_as<Vector>(from); }
  void store(float* to, Vector value) const { store_as(to, value); }
  Bytes load_bytes(const std::uint8_t* from) const { return load_as<Bytes>(from); }
  void store_bytes(std::uint8_t* to, Bytes value) const { store_as(to, value); }
  unsigned present() const { return ~0u >> (32 - kLanes); }
};

struct Streamed : Whole {
  void store(float* to, Vector value) const {
#if defined(__AVX512F__)
    _mm512_stream_ps(to, value);
#elif defined(__AVX2__)
    _mm256_stream_ps(to, value);
#else
    store_as(to, value);
#endif
  }
};

struct First {
  std::int64_t count;

  Vector load(const float* from) const { return load_first(from, count); }
  void store(float* to, Vector value) const { store_first(to, value, count); }
  Bytes load_bytes(const std::uint8_t* from) const {
    Bytes value{};
    for (std::int64_t lane = 0; lane < count; ++lane) value[lane] = from[lane];
    return value;
  }
  void store_bytes(std::uint8_t* to, Bytes value) const {
    for (std::int64_t lane = 0; lane < count; ++lane) to[lane] = value[lane];
  }
  unsigned present() const { return (1u << count) - 1u; }
};

// Calls work(lanes, channel) for every vector of a pixel's channels.
template <typename Full, typename Work>
SHADE_FAST_LANES void for_channels(std::int64_t channels, const Work& work) {
  std::int64_t channel = 0;
  for (; channel + kLanes <= channels; channel += kLanes) work(Full{}, channel);
  if (channel < channels) work(First{channels - channel}, channel);
}

// Finishes and stores the channels from `channel` on of pixel number `pixel`.
template <typename Lanes>
SHADE_FAST_LANES void finish_and_store(const Lanes& lanes, Vector value, const Finish& finish, std::int64_t pixel,
                                       std::int64_t channel, std::int64_t channels, float* result) {
  const std::int64_t place = pixel * channels + channel;
  const std::int64_t word = pixel * ((channels + kBlock - 1) / kBlock) + channel / kBlock;
  const int shift = static_cast<int>(channel % kBlock);
  if (finish.bias != nullptr) value += lanes.load(finish.bias + channel);
  if (finish.residual != nullptr) value += lanes.load(finish.residual + place);
  if (finish.positive != nullptr) {
    const unsigned before = shift == 0 ? 0u : finish.positive[word];
    const unsigned bits = positive_bits(value) & lanes.present();
    finish.positive[word] = static_cast<std::uint16_t>(before | bits << shift);
  }
  if (finish.relu) value = value < 0.0f ? Vector{} : value;
  if (finish.gate != nullptr) value = keep(value, static_cast<unsigned>(finish.gate[word]) >> shift);
  lanes.store(result + place, value);
}

// result = finish(value(lanes, place, channel)) for every vector of channels of a run of pixels.
template <typename Full, typename Value>
SHADE_FAST_LANES void map_pixels(std::int64_t pixels, std::int64_t channels, float* result, const Finish& finish,
                                 const Value& value) {
  for (std::int64_t pixel = 0; pixel < pixels; ++pixel) {
    for_channels<Full>(channels, [&](const auto& lanes, std::int64_t channel) __attribute__((always_inline)) {
      const Vector made = value(lanes, pixel * channels + channel, channel);
      finish_and_store(lanes, made, finish, pixel, channel, channels, result);
    });
  }
}

template <typename Value>
SHADE_FAST_LANES void map_pixels(bool stream, std::int64_t pixels, std::int64_t channels, float* result,
                                 const Finish& finish, const Value& value) {
  if (stream) {
    map_pixels<Streamed>(pixels, channels, result, finish, value);
  } else {
    map_pixels<Whole>(pixels, channels, result, finish, value);
  }
}

}  // namespace
}  // namespace shade_fast::cpu::SHADE_FAST_ISA
