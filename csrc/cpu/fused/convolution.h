// The kernels that convolutions and products of matrices are made of, within one instruction set.
#pragma once

#include <cstdint>

#include "../convolution.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {

// A product of matrices: sums[row, column] = sum over k of left * right, added to what is there if `accumulate`.
// left: row after row `row_step` floats apart, and k in runs of `run` values (the last may be shorter), `run_step` floats
// apart; right: [depth, width]; width: 16, or panel_width(). A row's sums run in the order of k, whatever the other rows.
// next, unless null: the right side of a later product of this depth and width, fetched meanwhile.
struct Product {
  const float* left;
  std::int64_t row_step, run_step;
  std::int64_t rows, depth, run;
  const float* right;
  std::int64_t width;
  float* sums;
  bool accumulate;
  const float* next;
};

void multiply(const Product& product);

// Columns of a panel of weights.
std::int64_t panel_width();

void direct(const Call& call, const Phase& phase, std::int64_t first, std::int64_t rows, float* scratch);
void narrow(const Call& call, const Phase& phase, std::int64_t row);
// How many tiles to transform at once.
std::int64_t winograd_tiles(std::int64_t channels);
void winograd(const Call& call, const WinogradTask& task, float* scratch);

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
