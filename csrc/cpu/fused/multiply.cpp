// The product that direct.cpp, winograd.cpp and matrix_product.cpp come down to. Registers hold the sums of a few rows
// and one panel of filters while k passes: for each k one load of the panel's vectors and one broadcast for each row.
// With 14 rows of two vectors (AVX-512) that is 28 fused multiply-adds for 16 loads. Sums begin at zero in each call and
// meet what is there at its end. What comes next is fetched beside it: machines do not foresee rows that lie apart, nor
// where weights too large for the second-level cache go on after a page.
#include "../vector/vector.h"
#include "convolution.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kRows = 14, kPanelBlocks = 2;
#elif defined(__AVX2__) || defined(__aarch64__)
constexpr int kRows = 6, kPanelBlocks = 1;
#else
constexpr int kRows = 3, kPanelBlocks = 1;
#endif

constexpr int kSecondLevel = 2;  // of the caches, for __builtin_prefetch

// Rows are addressed as every third row's pointer and once or twice the step: so many pointers fit the registers.
template <int rows>
struct Rows {
  static constexpr int kPointers = (rows + 2) / 3;
  const float* every_third[kPointers];
  std::int64_t step;

  Rows(const float* first, std::int64_t row_step) : step(row_step) {
#pragma GCC unroll 16
    for (int i = 0; i < kPointers; ++i) every_third[i] = first + 3 * i * row_step;
  }

  float operator[](int row) const { return every_third[row / 3][row % 3 * step]; }

  void advance() {
#pragma GCC unroll 16
    for (int i = 0; i < kPointers; ++i) ++every_third[i];
  }
};

// `lines` cache lines from `fetched` on are fetched beside every kBlock values of a run.
template <int rows, int blocks, bool adjacent>
void multiply_rows(const Product& product, std::int64_t first, const float* fetched, std::int64_t lines) {
  constexpr int vectors = blocks * kParts;
  constexpr std::int64_t width = blocks * kBlock;
  const std::int64_t row_step = adjacent ? kBlock : product.row_step;
  const float* left = product.left + first * row_step;
  const float* right = product.right;
  float* sums = product.sums + first * width;

  Vector sum[rows][vectors] = {};
  for (std::int64_t rest = product.depth; rest > 0; rest -= product.run, left += product.run_step) {
    if constexpr (adjacent) {
#pragma GCC unroll 16
      for (int row = 0; row < rows; ++row) __builtin_prefetch(left + product.run_step + row * kBlock);
    }
    Rows<rows> values(left, row_step);
    const std::int64_t length = rest < product.run ? rest : product.run;
    for (std::int64_t begin = 0; begin < length; begin += kBlock) {
      for (std::int64_t line = 0; line < lines; ++line, fetched += kBlock) __builtin_prefetch(fetched, 0, kSecondLevel);
      const std::int64_t count = clamp(length - begin, 0, kBlock);
      for (std::int64_t k = 0; k < count; ++k, right += width, values.advance()) {
        Vector factor[vectors];
#pragma GCC unroll 16
        for (int v = 0; v < vectors; ++v) factor[v] = load(right + v * kLanes);
#pragma GCC unroll 16
        for (int row = 0; row < rows; ++row) {
          const Vector value = broadcast(values[row]);
#pragma GCC unroll 16
          for (int v = 0; v < vectors; ++v) sum[row][v] += value * factor[v];
        }
      }
    }
  }
#pragma GCC unroll 16
  for (int row = 0; row < rows; ++row) {
#pragma GCC unroll 16
    for (int v = 0; v < vectors; ++v) {
      float* to = sums + row * width + v * kLanes;
      store(to, product.accumulate ? load(to) + sum[row][v] : sum[row][v]);
    }
  }
}

// multiply_rows for the number of rows that is asked for, `rows` at most.
template <int rows, int blocks, bool adjacent>
void dispatch(const Product& product, std::int64_t first, std::int64_t count, const float* fetched,
              std::int64_t lines) {
  if constexpr (rows > 1) {
    if (count < rows) return dispatch<rows - 1, blocks, adjacent>(product, first, count, fetched, lines);
  }
  multiply_rows<rows, blocks, adjacent>(product, first, fetched, lines);
}

template <int blocks, bool adjacent>
void multiply_all(const Product& product) {
  const std::int64_t groups = ceil_div(product.rows, kRows);
  const std::int64_t pieces = ceil_div(product.depth, product.run) * ceil_div(product.run, kBlock);
  const std::int64_t lines = product.next == nullptr ? 0 : ceil_div(product.depth * blocks, pieces * groups);
  for (std::int64_t group = 0; group < groups; ++group) {
    const std::int64_t first = product.rows * group / groups;
    const float* const fetched = product.next + group * pieces * lines * kBlock;
    dispatch<kRows, blocks, adjacent>(product, first, product.rows * (group + 1) / groups - first, fetched, lines);
  }
}

}  // namespace

std::int64_t panel_width() { return kPanelBlocks * kBlock; }

void multiply(const Product& product) {
  const bool adjacent = product.row_step == kBlock;
  if (product.width == kBlock) {
    adjacent ? multiply_all<1, true>(product) : multiply_all<1, false>(product);
  } else {
    adjacent ? multiply_all<kPanelBlocks, true>(product) : multiply_all<kPanelBlocks, false>(product);
  }
}

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
