// The product of two matrices: checks, the right operand packed by all threads, then rows shared out among them.
#include <algorithm>
#include <atomic>

#include "isa.h"
#include "matrix.h"
#include "threads.h"

namespace shade_fast::cpu {
namespace {

struct Kernels {
  decltype(&portable::panel_width) panel_width;
  decltype(&portable::pack_right) pack_right;
  decltype(&portable::multiply_rows) multiply_rows;
};

const Kernels kKernels[kIsas] = {
#if defined(SHADE_FAST_X86)
    {avx512::panel_width, avx512::pack_right, avx512::multiply_rows},
    {avx2::panel_width, avx2::pack_right, avx2::multiply_rows},
#endif
    {portable::panel_width, portable::pack_right, portable::multiply_rows},
};

}  // namespace

std::int64_t matrix_product_scratch(std::int64_t depth, std::int64_t columns, int threads) {
  return packed_right(depth, columns) + threads * rows_scratch(columns);
}

Status matrix_product(const MatrixProduct& product, float* scratch, int threads) {
  const std::int64_t rows = product.rows, columns = product.columns;
  if (rows < 0 || columns < 0 || product.depth < 1 || threads < 1) return Status::bad_argument;
  if (rows == 0 || columns == 0) return Status::ok;
  const Kernels& kernels = selected(kKernels);
  const std::int64_t panel = kernels.panel_width();
  parallel_for(ceil_div(columns, panel), 1, threads, [&](std::int64_t task) {
    const std::int64_t first = task * panel;
    kernels.pack_right(product.right, product.depth, first, std::min(panel, columns - first),
                       scratch + first * product.depth);
  });
  // Evenly, and in whole rounds of the threads.
  const std::int64_t tasks = std::min(rows, round_up(ceil_div(rows, kMatrixRows), threads));
  const std::int64_t sharers = std::min<std::int64_t>(threads, tasks);
  std::atomic<std::int64_t> next{0};
  parallel_for(sharers, 1, threads, [&](std::int64_t sharer) {
    float* const own = scratch + packed_right(product.depth, columns) + sharer * rows_scratch(columns);
    for (std::int64_t task = next++; task < tasks; task = next++) {
      const std::int64_t first = rows * task / tasks;
      kernels.multiply_rows(product, scratch, first, rows * (task + 1) / tasks - first, own);
    }
  });
  return Status::ok;
}

}  // namespace shade_fast::cpu
