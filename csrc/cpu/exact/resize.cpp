// Inner loops of a separable resize: one output row of a banded product along columns, or along rows.
#include "../pixels.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

// result[x] = sum over k of weights[k] * rows[k * width + x]; the sum's order over k is fixed.
void blend_rows(const float* __restrict rows, const float* __restrict weights, std::int64_t taps, std::int64_t width,
                float* __restrict result) {
  constexpr std::int64_t kTile = 2048;  // 8 KiB of sums stay in the first-level cache while the taps pass
  for (std::int64_t begin = 0; begin < width; begin += kTile) {
    const std::int64_t end = begin + kTile < width ? begin + kTile : width;
    for (std::int64_t x = begin; x < end; ++x) result[x] = weights[0] * rows[x];
    for (std::int64_t k = 1; k < taps; ++k) {
      const float* __restrict row = rows + k * width;
      const float weight = weights[k];
      for (std::int64_t x = begin; x < end; ++x) result[x] += weight * row[x];
    }
  }
}

// Columns whose sums are taken together.
constexpr std::int64_t kColumns = 16;

// Whether the rows' parts begin one after the other, so that neighbours are read side by side.
inline bool are_neighbours(const std::int32_t* start) {
  std::int32_t difference = 0;
  for (std::int32_t i = 0; i < kColumns; ++i) difference |= start[i] - start[0] - i;
  return difference == 0;
}

// result[x] = sum over k of weights[k * width + x] * row[start[x] + k].
void blend_columns(const float* __restrict row, const std::int32_t* __restrict start, const float* __restrict weights,
                   std::int64_t taps, std::int64_t width, float* __restrict result) {
  std::int64_t x = 0;
  for (; x + kColumns <= width; x += kColumns) {
    const float* __restrict tap = weights + x;
    float sums[kColumns] = {};
    if (are_neighbours(start + x)) {
      const float* __restrict neighbours = row + start[x];
      for (std::int64_t k = 0; k < taps; ++k, tap += width, ++neighbours) {
        for (std::int64_t i = 0; i < kColumns; ++i) sums[i] += tap[i] * neighbours[i];
      }
    } else {
      for (std::int64_t k = 0; k < taps; ++k, tap += width) {
        for (std::int64_t i = 0; i < kColumns; ++i) sums[i] += tap[i] * row[start[x + i] + k];
      }
    }
    for (std::int64_t i = 0; i < kColumns; ++i) result[x + i] = sums[i];
  }
  for (; x < width; ++x) {
    float sum = 0.0f;
    for (std::int64_t k = 0; k < taps; ++k) sum += weights[k * width + x] * row[start[x] + k];
    result[x] = sum;
  }
}

}  // namespace

const ResizeKernels resize = {blend_rows, blend_columns};

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
