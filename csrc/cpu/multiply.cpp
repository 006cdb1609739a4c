// The product that both winograd.cpp and direct.cpp come down to. Registers hold the sums of a few rows and one panel
// of filters while k passes: for each k one load of the panel's vectors and one broadcast for each row. With 14 rows of
// two vectors (AVX-512) that is 28 fused multiply-adds for 16 loads.
#include "convolution.h"
#include "vector.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 14, kPanelBlocks = 2;
#elif defined(__AVX2__) || defined(__aarch64__)
constexpr int kRows = 6, kPanelBlocks = 1;
#else
constexpr int kRows = 3, kPanelBlocks = 1;
#endif

template <int rows, int vectors>
inline void add_products(Vector (&sum)[rows][vectors], const float* left, const float* right) {
  Vector factor[vectors];
#pragma GCC unroll 16
  for (int v = 0; v < vectors; ++v) factor[v] = load(right + v * kLanes);
#pragma GCC unroll 16
  for (int row = 0; row < rows; ++row) {
    const Vector value = broadcast(left[row * kBlock]);
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) sum[row][v] += value * factor[v];
  }
}

template <int rows, int blocks>
void multiply_rows(const Product& product, std::int64_t first) {
  constexpr int vectors = blocks * kParts;
  constexpr std::int64_t width = blocks * kBlock;
  const std::int64_t left_step = product.left_rows * kBlock;
  const float* left = product.left + first * kBlock;
  const float* right = product.right;
  float* sums = product.sums + first * width;

  Vector sum[rows][vectors];
#pragma GCC unroll 16
  for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      sum[row][v] = product.accumulate ? load(sums + row * width + v * kLanes) : Vector{};
    }
  }
  for (std::int64_t run = 0; run < product.runs; ++run) {
    std::int64_t k = 0;
    for (; k + kBlock <= product.length; k += kBlock, left += left_step) {
#pragma GCC unroll 4
      for (int lane = 0; lane < kBlock; ++lane, right += width) add_products(sum, left + lane, right);
    }
    if (k == product.length) continue;
    for (const float* value = left; k < product.length; ++k, ++value, right += width) add_products(sum, value, right);
    left += left_step;
  }
#pragma GCC unroll 16
  for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) store(sums + row * width + v * kLanes, sum[row][v]);
  }
}

// multiply_rows for the number of rows that is asked for, `rows` at most.
template <int rows, int blocks>
void dispatch(const Product& product, std::int64_t first, std::int64_t count) {
  if constexpr (rows > 1) {
    if (count < rows) return dispatch<rows - 1, blocks>(product, first, count);
  }
  multiply_rows<rows, blocks>(product, first);
}

}  // namespace

std::int64_t panel_width() { return kPanelBlocks * kBlock; }

void multiply(const Product& product) {
  const std::int64_t groups = ceil_div(product.rows, kRows);
  for (std::int64_t group = 0; group < groups; ++group) {
    const std::int64_t first = product.rows * group / groups;
    const std::int64_t count = product.rows * (group + 1) / groups - first;
    if (product.width == kBlock) {
      dispatch<kRows, 1>(product, first, count);
    } else {
      dispatch<kRows, kPanelBlocks>(product, first, count);
    }
  }
}

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
