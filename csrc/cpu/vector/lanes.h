// One vector at a time along the channels of a pixel: how it is read and written.
#pragma once

#include <cstdint>

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

// A NaN stays a NaN. (The masked intrinsics are the plain instructions, without GCC's warnings of undefined lanes.)
SHADE_FAST_LANES Vector at_least(float limit, Vector value) {
#if defined(__AVX512F__)
  return _mm512_maskz_max_ps(0xffff, _mm512_set1_ps(limit), value);
#elif defined(__AVX2__)
  return _mm256_max_ps(_mm256_set1_ps(limit), value);
#else
  return value < limit ? broadcast(limit) : value;
#endif
}

SHADE_FAST_LANES Vector at_most(float limit, Vector value) {
#if defined(__AVX512F__)
  return _mm512_maskz_min_ps(0xffff, _mm512_set1_ps(limit), value);
#elif defined(__AVX2__)
  return _mm256_min_ps(_mm256_set1_ps(limit), value);
#else
  return value > limit ? broadcast(limit) : value;
#endif
}

SHADE_FAST_LANES Doubles widened(Half value) {
#if defined(__AVX512F__)
  return _mm512_maskz_cvtps_pd(0xff, value);
#elif defined(__AVX2__)
  return _mm256_cvtps_pd(value);
#else
  return __builtin_convertvector(value, Doubles);
#endif
}

struct Halves {
  Half half[2];
};

SHADE_FAST_LANES Halves halves(Vector value) { return load_as<Halves>(&value); }

typedef float Four __attribute__((vector_size(16)));

SHADE_FAST_LANES float sum(Four value) { return (value[0] + value[2]) + (value[1] + value[3]); }

template <typename Wide>
SHADE_FAST_LANES float sum(Wide value) {
  typedef float Narrow __attribute__((vector_size(sizeof(Wide) / 2)));
  struct {
    Narrow half[2];
  } parts;
  __builtin_memcpy(&parts, &value, sizeof value);
  return sum(parts.half[0] + parts.half[1]);
}

SHADE_FAST_LANES void add_to(double* sums, Doubles value) { store_as(sums, load_as<Doubles>(sums) + value); }

// sums[lane] += value[lane].
SHADE_FAST_LANES void add_to(double* sums, Vector value) {
  const Halves parts = halves(value);
  add_to(sums, widened(parts.half[0]));
  add_to(sums + kLanes / 2, widened(parts.half[1]));
}

// Lanes whose index is another than `chosen` become 0.
SHADE_FAST_LANES Vector keep_equal(Vector value, Bytes index, int chosen) {
#if defined(__AVX512F__)
  // Not `keep`: a load under a mask that has just been made is slow.
  const __mmask16 kept = _mm_cmpeq_epi8_mask(load_as<__m128i>(&index), _mm_set1_epi8(static_cast<char>(chosen)));
  return _mm512_and_ps(value, _mm512_castsi512_ps(_mm512_movm_epi32(kept)));
#elif defined(__AVX2__)
  const __m256i wide = _mm256_cvtepu8_epi32(_mm_cvtsi64_si128(load_as<long long>(&index)));
  return _mm256_and_ps(value, _mm256_castsi256_ps(_mm256_cmpeq_epi32(wide, _mm256_set1_epi32(chosen))));
#else
  const Integers kept = __builtin_convertvector(index, Integers) == Integers{} + chosen;
  return bits_to_float(float_to_bits(value) & kept);
#endif
}

SHADE_FAST_LANES Bytes narrowed(Integers value) {
#if defined(__AVX512F__)
  return reinterpret_cast<Bytes>(_mm512_maskz_cvtepi32_epi8(0xffff, reinterpret_cast<__m512i>(value)));
#else
  return __builtin_convertvector(value, Bytes);
#endif
}

// How a vector's worth of channels is read and written: all lanes, all of them past the caches (other threads see those
// once stores_done() has run), or the first few, the others being 0 and their memory left alone.
struct Whole {
  Vector load(const float* from) const { return load_as<Vector>(from); }
  Vector load_once(const float* from) const {
    __builtin_prefetch(from + kAhead);
    return load_as<Vector>(from);
  }
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
  Vector load_once(const float* from) const { return load_first(from, count); }
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

// Calls work with the way in which whole vectors are stored.
template <typename Work>
SHADE_FAST_LANES void with_stores(bool stream, const Work& work) {
  if (stream) {
    work(Streamed{});
    stores_done();
  } else {
    work(Whole{});
  }
}

// Calls work(lanes, channel) for every vector of a pixel's channels.
template <typename Full, typename Work>
SHADE_FAST_LANES void for_channels(std::int64_t channels, const Work& work) {
  std::int64_t channel = 0;
  for (; channel + kLanes <= channels; channel += kLanes) work(Full{}, channel);
  if (channel < channels) work(First{channels - channel}, channel);
}

template <int number>
struct Count {
  static constexpr int value = number;
};

// Calls work(lanes, count, channel) for every `together` vectors of a pixel's channels, and for the last ones singly.
template <int together, typename Full, typename Work>
SHADE_FAST_LANES void for_channels_together(std::int64_t channels, const Work& work) {
  std::int64_t channel = 0;
  for (; channel + together * kLanes <= channels; channel += together * kLanes) {
    work(Full{}, Count<together>{}, channel);
  }
  for_channels<Full>(channels - channel, [&](const auto& lanes, std::int64_t rest) {
    work(lanes, Count<1>{}, channel + rest);
  });
}

// Calls work(count, pixel) with a constant count for all pixels, `together` at a time and the last ones by themselves.
template <int together, typename Work>
SHADE_FAST_LANES void for_pixels(std::int64_t pixels, const Work& work) {
  std::int64_t pixel = 0;
  for (; pixel + together <= pixels; pixel += together) work(Count<together>{}, pixel);
  for (; pixel < pixels; ++pixel) work(Count<1>{}, pixel);
}

}  // namespace
}  // namespace shade_fast::cpu::SHADE_FAST_ISA
