// Inner loops of a separable resize: one output row of a banded product along columns, or along rows.
#include "kernels.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {

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

// result[x] = sum over k of weights[k * width + x] * row[start[x] + k].
void blend_columns(const float* __restrict row, const std::int32_t* __restrict start, const float* __restrict weights,
                   std::int64_t taps, std::int64_t width, float* __restrict result) {
  for (std::int64_t x = 0; x < width; ++x) result[x] = weights[x] * row[start[x]];
  for (std::int64_t k = 1; k < taps; ++k) {
    const float* __restrict shifted = row + k;
    const float* __restrict tap = weights + k * width;
    for (std::int64_t x = 0; x < width; ++x) result[x] += tap[x] * shifted[start[x]];
  }
}

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
