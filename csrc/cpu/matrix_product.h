// The inner loops of a product of two matrices that both change from call to call.
#pragma once

#include <cstdint>

#include "../shade_fast.h"
#include "convolution.h"

namespace shade_fast::cpu {

// Rows of the result in a task, and how many values of the sums' index are multiplied before the next ones are packed:
// both operands' parts then stay in the second-level cache.
constexpr std::int64_t kMatrixRows = 112;
constexpr std::int64_t kMatrixDepth = 512;

struct MatrixProductKernels {
  std::int64_t (*panel_width)();
  void (*pack_right)(const Matrix& right, std::int64_t depth, std::int64_t first, std::int64_t width, float* packed);
  void (*multiply_rows)(const MatrixProduct& product, const float* packed, std::int64_t first, std::int64_t rows,
                        float* scratch);
};

SHADE_FAST_KERNELS(MatrixProductKernels, matrix_product)

// packed: the right operand in panels as wide as the registers take, each [depth, width].
static constexpr inline std::int64_t packed_right(std::int64_t depth, std::int64_t columns) {
  return depth * round_up(columns, 16);
}

static constexpr inline std::int64_t rows_scratch(std::int64_t columns) {
  return kMatrixRows * (round_up(columns, 16) + kMatrixDepth);
}

}  // namespace shade_fast::cpu
