// A product of matrices that both change from call to call, in AMX's tiles (see multiply.h): both operands are split into the
// order of the tiles, the right one once for all rows.
#include "../matrix_product.h"
#include "multiply.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

// Rows of 16 words of 32 bits become columns.
void transpose(__m512i (&rows)[16]) {
  constexpr __mmask16 kAll = 0xffff;
  constexpr __mmask8 kEach = 0xff;
  __m512i pairs[16];
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_maskz_unpacklo_epi32(kAll, rows[i], rows[i + 1]);
    pairs[i + 1] = _mm512_maskz_unpackhi_epi32(kAll, rows[i], rows[i + 1]);
  }
  // rows[4 * i + j]: in each quarter the words of column 4 * quarter + j of the rows 4 * i to 4 * i + 3.
  for (int i = 0; i < 16; i += 4) {
    rows[i] = _mm512_maskz_unpacklo_epi64(kEach, pairs[i], pairs[i + 2]);
    rows[i + 1] = _mm512_maskz_unpackhi_epi64(kEach, pairs[i], pairs[i + 2]);
    rows[i + 2] = _mm512_maskz_unpacklo_epi64(kEach, pairs[i + 1], pairs[i + 3]);
    rows[i + 3] = _mm512_maskz_unpackhi_epi64(kEach, pairs[i + 1], pairs[i + 3]);
  }
  for (int j = 0; j < 4; ++j) {
    const __m512i low_even = _mm512_maskz_shuffle_i32x4(kAll, rows[j], rows[4 + j], 0x88);
    const __m512i low_odd = _mm512_maskz_shuffle_i32x4(kAll, rows[j], rows[4 + j], 0xdd);
    const __m512i high_even = _mm512_maskz_shuffle_i32x4(kAll, rows[8 + j], rows[12 + j], 0x88);
    const __m512i high_odd = _mm512_maskz_shuffle_i32x4(kAll, rows[8 + j], rows[12 + j], 0xdd);
    pairs[j] = _mm512_maskz_shuffle_i32x4(kAll, low_even, high_even, 0x88);
    pairs[4 + j] = _mm512_maskz_shuffle_i32x4(kAll, low_odd, high_odd, 0x88);
    pairs[8 + j] = _mm512_maskz_shuffle_i32x4(kAll, low_even, high_even, 0xdd);
    pairs[12 + j] = _mm512_maskz_shuffle_i32x4(kAll, low_odd, high_odd, 0xdd);
  }
  for (int i = 0; i < 16; ++i) rows[i] = pairs[i];
}

// 16 lines of 32 values, whose values lie next to each other or whose lines do: each line's 32 bfloat16s in a register,
// as 16 pairs. Past `lines` and `length` there are zeros.
struct Lines {
  __m512i large[16], small[16];
};

void read_lines(const float* from, std::int64_t line_step, std::int64_t lines, std::int64_t length, Lines& to) {
  for (std::int64_t line = 0; line < 16; ++line, from += line_step) {
    const std::int64_t first = line < lines ? clamp(length, 0, kLanes) : 0;
    const std::int64_t second = line < lines ? clamp(length - kLanes, 0, kLanes) : 0;
    const Split parts = split(first > 0 ? load_first(from, first) : Vector{},
                              second > 0 ? load_first(from + kLanes, second) : Vector{});
    to.large[line] = parts.large;
    to.small[line] = parts.small;
  }
}

// The same transposed: register k holds the values 2 * k and 2 * k + 1 of each of the 16 lines, side by side.
void read_pairs(const float* from, std::int64_t value_step, std::int64_t lines, std::int64_t length, Lines& to) {
  const __m512i order = _mm512_setr_epi32(0x00100000, 0x00110001, 0x00120002, 0x00130003, 0x00140004, 0x00150005,
                                          0x00160006, 0x00170007, 0x00180008, 0x00190009, 0x001a000a, 0x001b000b,
                                          0x001c000c, 0x001d000d, 0x001e000e, 0x001f000f);
  for (std::int64_t pair = 0; pair < 16; ++pair, from += 2 * value_step) {
    const Vector even = 2 * pair < length ? load_first(from, lines) : Vector{};
    const Vector odd = 2 * pair + 1 < length ? load_first(from + value_step, lines) : Vector{};
    const Split parts = split(even, odd);
    to.large[pair] = _mm512_maskz_permutexvar_epi16(~0u, order, parts.large);
    to.small[pair] = _mm512_maskz_permutexvar_epi16(~0u, order, parts.small);
  }
}

// Lines of the left operand are its rows, each a row of a tile; lines of the right one its columns, whose pairs of values
// are the rows of a tile.
void split_lines(const float* from, std::int64_t line_step, std::int64_t value_step, std::int64_t lines,
                 std::int64_t length, bool pairs, Lines& to) {
  const bool read_as_pairs = value_step != 1;
  if (read_as_pairs) {
    read_pairs(from, value_step, lines, length, to);
  } else {
    read_lines(from, line_step, lines, length, to);
  }
  if (read_as_pairs == pairs) return;
  transpose(to.large);
  transpose(to.small);
}

// left: [depth / 32, rows, larger and smaller parts, 32].
void split_left(const Matrix& left, std::int64_t first, std::int64_t rows, std::int64_t begin, std::int64_t length,
                std::int64_t run_step, std::uint8_t* to) {
  for (std::int64_t k = 0; k < length; k += kTilesRun, to += run_step) {
    for (std::int64_t row = 0; row < rows; row += 16) {
      const float* const from =
          left.values + (first + row) * left.row_step + (begin + k) * left.column_step;
      Lines lines;
      split_lines(from, left.row_step, left.column_step, clamp(rows - row, 0, 16), clamp(length - k, 0, kTilesRun), false,
                  lines);
      for (std::int64_t i = 0; i < 16; ++i) {
        store_split({lines.large[i], lines.small[i]}, to + (row + i) * kRunBytes);
      }
    }
  }
}

void store_sums(const MatrixProduct& product, const float* sums, std::int64_t row, std::int64_t rows,
                std::int64_t column, std::int64_t columns, bool accumulate) {
  const Vector factor = broadcast(product.factor);
  const std::int64_t tiles = ceil_div(columns, 16);
  for (std::int64_t i = 0; i < rows; ++i) {
    float* const result = product.result + (row + i) * product.result_step + column;
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
      const std::int64_t count = clamp(columns - tile * 16, 0, 16);
      Vector value = factor * load(sums + (i / 16 * tiles + tile) * 256 + i % 16 * 16);
      if (accumulate) value += load_first(result + tile * 16, count);
      store_first(result + tile * 16, value, count);
    }
  }
}

}  // namespace

void split_right(const Matrix& right, std::int64_t depth, std::int64_t first, std::int64_t width, float* packed) {
  auto* to = reinterpret_cast<std::uint8_t*>(packed);
  const std::int64_t tiles = ceil_div(width, 16);
  for (std::int64_t k = 0; k < depth; k += kTilesRun, to += 2 * tiles * kTile) {
    for (std::int64_t tile = 0; tile < tiles; ++tile) {
      const float* const from = right.values + (first + tile * 16) * right.column_step + k * right.row_step;
      Lines lines;
      split_lines(from, right.column_step, right.row_step, clamp(width - tile * 16, 0, 16),
                  clamp(depth - k, 0, kTilesRun), true, lines);
      for (int i = 0; i < 16; ++i) {
        _mm512_store_si512(to + tile * kTile + i * kRow, lines.small[i]);
        _mm512_store_si512(to + (tiles + tile) * kTile + i * kRow, lines.large[i]);
      }
    }
  }
}

void multiply_split_rows(const MatrixProduct& product, const float* packed, std::int64_t first, std::int64_t rows,
                         float* scratch) {
  float* const sums = scratch;
  auto* const left = reinterpret_cast<std::uint8_t*>(scratch + kTilesSums);
  const OwnTiles own;
  for (std::int64_t begin = 0; begin < product.depth; begin += kSplitDepth) {
    const std::int64_t length = clamp(product.depth - begin, 0, kSplitDepth);
    const std::int64_t run_step = round_up(rows, 16) * kRunBytes;
    split_left(product.left, first, rows, begin, length, run_step, left);
    const Steps steps{ceil_div(length, kTilesRun), run_step, 1, 0, 1, 0, kRunBytes};
    for (std::int64_t column = 0; column < product.columns; column += kTilesPanel) {
      const std::int64_t columns = clamp(product.columns - column, 0, kTilesPanel);
      const int column_tiles = columns > 16 ? 2 : 1;
      const auto* const right = reinterpret_cast<const std::uint8_t*>(
          packed + column * round_up(product.depth, kTilesRun) + begin * column_tiles * 16);
      for (std::int64_t row = 0; row < rows; row += 32) {
        const std::uint8_t* const group = left + row * kRunBytes;
        multiply_tiles(rows - row > 16 ? 2 : 1, column_tiles, steps, group, group + 16 * kRunBytes, right, sums, [] {});
        store_sums(product, sums, first + row, clamp(rows - row, 0, 32), column, columns,
                   product.accumulate || begin > 0);
      }
    }
  }
}

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
