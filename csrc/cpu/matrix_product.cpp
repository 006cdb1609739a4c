// The product of two matrices: checks, the right operand packed by all threads, then rows shared out among them.
#include <algorithm>
#include <atomic>

#include "isa.h"
#include "matrix_product.h"
#include "threads.h"
#include "tiles.h"

namespace shade_fast::cpu {
namespace {

// What one way of multiplying is made of: the right operand's panels, and tasks of rows.
struct Way {
  decltype(MatrixProductKernels::pack_right) pack_right;
  decltype(MatrixProductKernels::multiply_rows) multiply_rows;
  std::int64_t panel, rows, right_floats, rows_floats;
};

Way way([[maybe_unused]] Algorithm algorithm, std::int64_t depth, std::int64_t columns) {
#if defined(SHADE_FAST_AMX)
  if (algorithm == Algorithm::tiles) {
    const std::int64_t runs = round_up(depth, kTilesRun);
    return {amx::split_right, amx::multiply_split_rows, kTilesPanel, kSplitRows, packed_right(runs, columns),
            kTilesSums + kSplitRows * std::min(runs, kSplitDepth)};
  }
#endif
  const MatrixProductKernels& kernels = SHADE_FAST_SELECTED(matrix_product);
  return {kernels.pack_right, kernels.multiply_rows, kernels.panel_width(), kMatrixRows,
          packed_right(depth, columns), rows_scratch(columns)};
}

}  // namespace

bool supports_product(Algorithm algorithm) {
  return algorithm == Algorithm::direct || (algorithm == Algorithm::tiles && selected_tiles());
}

std::int64_t matrix_product_scratch(Algorithm algorithm, std::int64_t depth, std::int64_t columns, int threads) {
  if (!supports_product(algorithm)) return 0;
  const Way chosen = way(algorithm, depth, columns);
  return chosen.right_floats + threads * chosen.rows_floats + 16;
}

Status matrix_product(Algorithm algorithm, const MatrixProduct& product, float* scratch, int threads) {
  const std::int64_t rows = product.rows, columns = product.columns;
  if (!supports_product(algorithm) || rows < 0 || columns < 0 || product.depth < 1 || threads < 1) {
    return Status::bad_argument;
  }
  if (rows == 0 || columns == 0) return Status::ok;
  const Way chosen = way(algorithm, product.depth, columns);
  float* const right = aligned(scratch);
  const std::int64_t right_depth = chosen.right_floats / round_up(columns, 16);
  parallel_for(ceil_div(columns, chosen.panel), 1, threads, [&](std::int64_t task) {
    const std::int64_t first = task * chosen.panel;
    chosen.pack_right(product.right, product.depth, first, std::min(chosen.panel, columns - first),
                      right + first * right_depth);
  });
  // Evenly, and in whole rounds of the threads.
  const std::int64_t tasks = std::min(rows, round_up(ceil_div(rows, chosen.rows), threads));
  const std::int64_t sharers = std::min<std::int64_t>(threads, tasks);
  std::atomic<std::int64_t> next{0};
  parallel_for(sharers, 1, threads, [&](std::int64_t sharer) {
    float* const own = right + chosen.right_floats + sharer * chosen.rows_floats;
    for (std::int64_t task = next++; task < tasks; task = next++) {
      const std::int64_t first = rows * task / tasks;
      chosen.multiply_rows(product, right, first, rows * (task + 1) / tasks - first, own);
    }
  });
  return Status::ok;
}

}  // namespace shade_fast::cpu
