// Vectors of float32 as wide as the instruction set's registers, and blocks of 16 values made of them: 16 is the number
// of channels in a word of a mask, and the first whole number of vectors in every instruction set.
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace shade_fast::cpu::SHADE_FAST_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * kLanes)));

constexpr std::int64_t kBlock = 16;
constexpr int kParts = static_cast<int>(kBlock) / kLanes;

// What is read once is fetched this many values ahead: the machine's own prefetching does not follow several rows.
constexpr std::int64_t kAhead = 4096;

inline Vector load(const float* from) {
  Vector value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}

inline void store(float* to, Vector value) { __builtin_memcpy(to, &value, sizeof value); }

inline Vector broadcast(float value) { return value - Vector{}; }  // exact for -0 too

inline std::int64_t clamp(std::int64_t value, std::int64_t low, std::int64_t high) {
  return value < low ? low : value > high ? high : value;
}

#if defined(__AVX2__) && !defined(__AVX512F__)
inline __m256i first_lanes(std::int64_t count) {
  const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), lane);
}
#endif

// The first `count` lanes, 0 to kLanes; the others are 0, and their memory is not touched.
inline Vector load_first(const float* from, std::int64_t count) {
#if defined(__AVX512F__)
  return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1u), from);
#elif defined(__AVX2__)
  return _mm256_maskload_ps(from, first_lanes(count));
#else
  Vector value{};
  for (std::int64_t i = 0; i < count; ++i) value[i] = from[i];
  return value;
#endif
}

inline void store_first(float* to, Vector value, std::int64_t count) {
#if defined(__AVX512F__)
  _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1u << count) - 1u), value);
#elif defined(__AVX2__)
  _mm256_maskstore_ps(to, first_lanes(count), value);
#else
  for (std::int64_t i = 0; i < count; ++i) to[i] = value[i];
#endif
}

// Bit i: lane i is above 0.
inline unsigned positive_bits(Vector value) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(value, _mm512_setzero_ps(), _CMP_GT_OQ);
#elif defined(__AVX2__)
  return static_cast<unsigned>(_mm256_movemask_ps(_mm256_cmp_ps(value, _mm256_setzero_ps(), _CMP_GT_OQ)));
#else
  unsigned bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= (value[i] > 0.0f ? 1u : 0u) << i;
  return bits;
#endif
}

// Lanes whose bit is 0 become 0.
inline Vector keep(Vector value, unsigned bits) {
#if defined(__AVX512F__)
  return _mm512_maskz_mov_ps(static_cast<__mmask16>(bits), value);
#elif defined(__AVX2__)
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i kept = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), bit), bit);
  return _mm256_and_ps(value, _mm256_castsi256_ps(kept));
#else
  for (int i = 0; i < kLanes; ++i) value[i] = (bits >> i & 1u) != 0u ? value[i] : 0.0f;
  return value;
#endif
}

struct Block {
  Vector part[kParts];
};

inline Block load_block(const float* from) {
  Block block;
  for (int i = 0; i < kParts; ++i) block.part[i] = load(from + i * kLanes);
  return block;
}

inline Block load_block(const float* from, std::int64_t count) {
  if (count >= kBlock) return load_block(from);
  Block block;
  for (int i = 0; i < kParts; ++i) {
    block.part[i] = load_first(from + i * kLanes, clamp(count - i * kLanes, 0, kLanes));
  }
  return block;
}

inline void store_block(float* to, const Block& block) {
  for (int i = 0; i < kParts; ++i) store(to + i * kLanes, block.part[i]);
}

// After it other threads see what was stored past the caches.
inline void stores_done() {
#if defined(__AVX2__)
  _mm_sfence();
#endif
}

inline void store_block(float* to, const Block& block, std::int64_t count) {
  if (count >= kBlock) return store_block(to, block);
  for (int i = 0; i < kParts; ++i) store_first(to + i * kLanes, block.part[i], clamp(count - i * kLanes, 0, kLanes));
}

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
