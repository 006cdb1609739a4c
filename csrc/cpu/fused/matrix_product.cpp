// A product of matrices: both operands are packed into the order in which multiply.cpp reads them, the right one once
// for all rows. 2 * depth operations for each value of the result.
#include "../matrix_product.h"

#include "../vector/vector.h"
#include "convolution.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

// left: [depth / 16, rows, 16].
void pack_left(const Matrix& left, std::int64_t first, std::int64_t rows, std::int64_t begin, std::int64_t length,
               float* to) {
  const float* from = left.values + first * left.row_step + begin * left.column_step;
  if (left.column_step == 1) {
    for (std::int64_t k = 0; k < length; k += kBlock) {
      for (std::int64_t row = 0; row < rows; ++row, to += kBlock) {
        store_block(to, load_block(from + row * left.row_step + k, length - k));
      }
    }
    return;
  }
  for (std::int64_t k = 0; k < length; ++k) {
    float* const column = to + k / kBlock * rows * kBlock + k % kBlock;
    const float* const source = from + k * left.column_step;
    for (std::int64_t row = 0; row < rows; ++row) column[row * kBlock] = source[row * left.row_step];
  }
}

void store_rows(const MatrixProduct& product, std::int64_t first, std::int64_t rows, const float* sums) {
  const Vector factor = broadcast(product.factor);
  for (std::int64_t panel = 0; panel < product.columns; panel += panel_width()) {
    const std::int64_t width = clamp(round_up(product.columns - panel, kBlock), 0, panel_width());
    for (std::int64_t row = 0; row < rows; ++row, sums += width) {
      float* const result = product.result + (first + row) * product.result_step + panel;
      for (std::int64_t block = 0; block < width; block += kBlock) {
        const std::int64_t count = product.columns - panel - block;
        Block value = load_block(sums + block);
        for (int i = 0; i < kParts; ++i) value.part[i] *= factor;
        if (product.accumulate) {
          const Block before = load_block(result + block, count);
          for (int i = 0; i < kParts; ++i) value.part[i] += before.part[i];
        }
        store_block(result + block, value, count);
      }
    }
  }
}

void pack_right(const Matrix& right, std::int64_t depth, std::int64_t first, std::int64_t width, float* packed) {
  const std::int64_t columns = width;
  const float* from = right.values + first * right.column_step;
  const std::int64_t padded = round_up(columns, kBlock);
  if (right.column_step == 1) {
    for (std::int64_t k = 0; k < depth; ++k, packed += padded) {
      for (std::int64_t block = 0; block < padded; block += kBlock) {
        store_block(packed + block, load_block(from + k * right.row_step + block, columns - block));
      }
    }
    return;
  }
  for (std::int64_t column = 0; column < padded; ++column) {
    const float* const source = from + column * right.column_step;
    for (std::int64_t k = 0; k < depth; ++k) {
      packed[k * padded + column] = column < columns ? source[k * right.row_step] : 0.0f;
    }
  }
}

void multiply_rows(const MatrixProduct& product, const float* packed, std::int64_t first, std::int64_t rows,
                   float* scratch) {
  float* const sums = scratch;
  float* const left = scratch + rows * round_up(product.columns, kBlock);
  for (std::int64_t begin = 0; begin < product.depth; begin += kMatrixDepth) {
    const std::int64_t length = clamp(product.depth - begin, 0, kMatrixDepth);
    pack_left(product.left, first, rows, begin, length, left);
    for (std::int64_t panel = 0; panel < product.columns; panel += panel_width()) {
      const std::int64_t width = clamp(round_up(product.columns - panel, kBlock), 0, panel_width());
      multiply({left, kBlock, rows * kBlock, rows, length, kBlock, packed + panel * product.depth + begin * width, width,
                sums + panel * rows, begin > 0, nullptr});
    }
  }
  store_rows(product, first, rows, sums);
}

}  // namespace

const MatrixProductKernels matrix_product = {panel_width, pack_right, multiply_rows};

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
