// AMX's tiles: float32 as sums of two bfloat16s, and products of them.
//
// A value's larger part is its rounding to bfloat16, its smaller one the rounding of what that leaves. Of the four
// products of two values the three largest are summed in float32: relative errors of about 2^-17, at three products each,
// of which a core does 16 times as many as of float32's. What is under 2^-126 counts as 0, a smaller part that is as well
// as a value; what rounds to infinity in bfloat16 makes NaN.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../vector/epilogue.h"
#include "../tiles.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

// A tile: 16 rows of 64 bytes. Of a run of 32 values, the larger parts take one row, the smaller ones the next.
constexpr std::int64_t kTile = 1024, kRow = 64;
constexpr std::int64_t kRunBytes = 2 * kRow;

// The tiles of this thread are ours while it lives.
class OwnTiles {
 public:
  OwnTiles() {
    alignas(64) static constexpr struct {
      std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
      std::uint16_t row_bytes[16] = {kRow, kRow, kRow, kRow, kRow, kRow, kRow, kRow};
      std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
  }
  ~OwnTiles() { _tile_release(); }
};

// (The masked intrinsics are the plain instructions, without GCC's warnings of undefined lanes.)
inline __m512 from_bfloat16(__m256i values) {
  const __m512i wide = _mm512_maskz_cvtepu16_epi32(0xffff, values);
  return _mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, wide, 16));
}

struct Split {
  __m512i large, small;
};

// Of 32 values.
inline Split split(Vector first, Vector second) {
  const __m512i large = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
  const Vector first_left = first - from_bfloat16(_mm512_maskz_extracti64x4_epi64(0xf, large, 0));
  const Vector second_left = second - from_bfloat16(_mm512_maskz_extracti64x4_epi64(0xf, large, 1));
  return {large, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second_left, first_left))};
}

inline void store_split(const Split& parts, std::uint8_t* to) {
  _mm512_store_si512(to, parts.large);
  _mm512_store_si512(to + kRow, parts.small);
}

// How the rows of a product's left operand, and its sums' index, lie in memory: `runs` * taps_y * taps_x steps of 32
// values each, run_step, tap_y_step and tap_x_step bytes apart; a group's 16 rows, row_step bytes apart.
struct Steps {
  std::int64_t runs, run_step;
  std::int64_t taps_y, tap_y_step;
  std::int64_t taps_x, tap_x_step;
  std::int64_t row_step;

  std::int64_t count() const { return runs * taps_y * taps_x; }
};

// Tiles 0 to 3: sums; 4, 5: rows of the left operand; 6, 7: columns of the right one, whose smaller parts come first.
template <int rows, int columns>
inline __attribute__((always_inline)) void multiply_step(const std::uint8_t* first, const std::uint8_t* second,
                                                         std::int64_t row_step, const std::uint8_t* right) {
  _tile_loadd(4, first, row_step);
  _tile_loadd(6, right, kRow);
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (columns == 2) {
    _tile_loadd(7, right + kTile, kRow);
    _tile_dpbf16ps(1, 4, 7);
  }
  if constexpr (rows == 2) {
    _tile_loadd(5, second, row_step);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (columns == 2) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_loadd(6, right + columns * kTile, kRow);
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (rows == 2) _tile_dpbf16ps(2, 5, 6);
  if constexpr (columns == 2) {
    _tile_loadd(7, right + 3 * kTile, kRow);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (rows == 2) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_loadd(4, first + kRow, row_step);
  _tile_dpbf16ps(0, 4, 6);
  if constexpr (columns == 2) _tile_dpbf16ps(1, 4, 7);
  if constexpr (rows == 2) {
    _tile_loadd(5, second + kRow, row_step);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (columns == 2) _tile_dpbf16ps(3, 5, 7);
  }
}

// sums: [rows, columns, 16, 16], of one or two groups of 16 rows of the left operand and of 16 columns of the right one.
// right: [runs, taps_y, taps_x, smaller and larger parts, columns, tile], a tile: [16 pairs of values, 16 columns, 2].
// Calls meanwhile() after each step, for work that the vector units do while the tiles multiply.
template <int rows, int columns, typename Work>
inline __attribute__((always_inline)) void multiply_tiles(const Steps& steps, const std::uint8_t* first,
                                                          const std::uint8_t* second, const std::uint8_t* right,
                                                          float* sums, const Work& meanwhile) {
  asm volatile("" ::: "memory");  // the tiles' loads do not tell the compiler what memory they read
  _tile_zero(0);
  if constexpr (columns == 2) _tile_zero(1);
  if constexpr (rows == 2) _tile_zero(2);
  if constexpr (rows == 2 && columns == 2) _tile_zero(3);
  for (std::int64_t run = 0; run < steps.runs; ++run) {
    for (std::int64_t i = 0; i < steps.taps_y; ++i) {
      const std::int64_t row = run * steps.run_step + i * steps.tap_y_step;
      for (std::int64_t j = 0; j < steps.taps_x; ++j, right += 2 * columns * kTile) {
        const std::int64_t place = row + j * steps.tap_x_step;
        multiply_step<rows, columns>(first + place, second + place, steps.row_step, right);
        meanwhile();
      }
    }
  }
  _tile_stored(0, sums, kRow);
  if constexpr (columns == 2) _tile_stored(1, sums + 256, kRow);
  if constexpr (rows == 2) _tile_stored(2, sums + 256 * columns, kRow);
  if constexpr (rows == 2 && columns == 2) _tile_stored(3, sums + 768, kRow);
}

// The same, with the numbers of groups known when it runs.
template <typename Work>
inline void multiply_tiles(int rows, int columns, const Steps& steps, const std::uint8_t* first,
                           const std::uint8_t* second, const std::uint8_t* right, float* sums, const Work& meanwhile) {
  if (rows == 2 && columns == 2) return multiply_tiles<2, 2>(steps, first, second, right, sums, meanwhile);
  if (rows == 2) return multiply_tiles<2, 1>(steps, first, second, right, sums, meanwhile);
  if (columns == 2) return multiply_tiles<1, 2>(steps, first, second, right, sums, meanwhile);
  return multiply_tiles<1, 1>(steps, first, second, right, sums, meanwhile);
}

}  // namespace
}  // namespace shade_fast::cpu::SHADE_FAST_ISA
