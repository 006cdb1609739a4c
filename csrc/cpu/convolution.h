// The convolutions' inner loops, and what they share with the side that cuts the work into tasks and packs the weights.
//
// Packed weights hold the filters in panels: panel_width() of them side by side, 16 in the last panel where no more are
// left, filters past the last being 0.
#pragma once

#include <cstdint>

#include "../shade_fast.h"
#include "kernels.h"

namespace shade_fast::cpu {

static constexpr inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
static constexpr inline std::int64_t round_up(std::int64_t a, std::int64_t b) { return ceil_div(a, b) * b; }

// The first place in scratch memory at which a cache line begins; 16 floats more than are used are asked for.
static inline float* aligned(float* scratch) {
  return reinterpret_cast<float*>(round_up(reinterpret_cast<std::intptr_t>(scratch), 64));
}

// With `up` > 1 an output pixel meets only every up-th tap. The output pixels (first_y + y * step, first_x + x * step)
// meet the same ones, so together they are an ordinary convolution, with fewer taps: tap (i, j) of output pixel (y, x)
// lies at input pixel (y * stride + offset_y + i, x * stride + offset_x + j). A row of taps is a run of
// taps_x * channels values, in the input and in the weights.
struct Phase {
  std::int64_t rows, columns, first_y, first_x, step;
  std::int64_t taps_y, taps_x, offset_y, offset_x;
  std::int64_t first_tap_y, first_tap_x;  // in the whole kernel, from where on every step-th tap is this phase's
  std::int64_t weights;                   // where the phase's packed weights begin

  std::int64_t pixels(const Convolution& convolution) const { return convolution.images * rows * columns; }
};

// What the kernels of one call have in common.
struct Call {
  Convolution convolution;
  const float* packed;
  const float* input;
  float* result;
  Epilogue epilogue;
  bool stream;  // the result goes past the caches
};

// direct() takes at most so many pixels at once, and so many values of each. Where the weights fit the second-level
// cache, fewer pixels do, and their input stays in the first; else the weights have to serve more of them. Partial sums of
// a few hundred products, added up, lose less to rounding than one sum of thousands; `exact` rests on that.
constexpr std::int64_t kDirectPixels = 56;
constexpr std::int64_t kDirectDepth = 384;

constexpr int kMostNarrowFilters = 8;

// The points at which F(2x2), F(4x4), F(6x6) evaluate polynomials, besides 0 and infinity: each with its negative.
constexpr double kWinogradPoints[3][3] = {{1.0}, {0.625, 1.5}, {0.5, 1.0, 2.0}};

// Tiles of outputs x outputs pixels, in the order of the images' rows of tiles, and filters, multiples of 16.
struct WinogradTask {
  std::int64_t outputs;
  std::int64_t first_tile, tiles;
  std::int64_t first_filter, end_filter;
};

// Floats between one point's values and the next's: never a multiple of the cache's 4 KiB.
static constexpr inline std::int64_t winograd_step(std::int64_t channels, std::int64_t tiles) {
  return round_up(channels, 16) * tiles + 16;
}

struct ConvolutionKernels {
  std::int64_t (*panel_width)();
  void (*direct)(const Call& call, const Phase& phase, std::int64_t first, std::int64_t rows, float* scratch);
  void (*narrow)(const Call& call, const Phase& phase, std::int64_t row);
  std::int64_t (*winograd_tiles)(std::int64_t channels);
  void (*winograd)(const Call& call, const WinogradTask& task, float* scratch);
};

SHADE_FAST_KERNELS(ConvolutionKernels, convolution)

}  // namespace shade_fast::cpu
