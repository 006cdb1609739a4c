// What the kernels for AMX's tiles (amx/) and the side that cuts the work into their tasks share.
#pragma once

#include "convolution.h"

namespace shade_fast::cpu {

// Channels that a tile's row holds, and filters whose sums are made together.
constexpr std::int64_t kTilesRun = 32;
constexpr std::int64_t kTilesPanel = 32;

// Floats of the sums that are made at once. There are two of them, made and stored in turns.
constexpr std::int64_t kTilesSums = 4 * 256;

// Output pixels of a phase, in one image, and filters, multiples of 16.
struct TilesTask {
  std::int64_t image;
  std::int64_t first_row, rows, first_column, columns;
  std::int64_t first_filter, end_filter;
};

namespace {  // each side has its own copy, compiled for its own instruction set

// The input under a task's pixels, `region_rows` rows of `pitch` pixels for every run of channels, and the groups of 16
// places in a row that the products take: either each row of output pixels by itself, or where its end would waste more,
// all places of the region, those between two rows of output pixels for nothing.
struct TilesLayout {
  std::int64_t runs, pitch, region_rows;
  std::int64_t rows, columns, stride, taps_y, across, groups;
  bool flat;

  TilesLayout(const Convolution& c, const Phase& phase, std::int64_t rows, std::int64_t columns)
      : runs(ceil_div(c.channels, kTilesRun)),
        pitch((columns - 1) * c.stride + (phase.taps_x > 1 ? phase.taps_x : 1)),
        region_rows((rows - 1) * c.stride + (phase.taps_y > 1 ? phase.taps_y : 1)),
        rows(rows),
        columns(columns),
        stride(c.stride),
        taps_y(phase.taps_y),
        across(ceil_div(columns, 16)),
        groups(rows * across),
        flat(false) {
    const std::int64_t flat_groups = ceil_div((rows - 1) * pitch + columns, 16);
    if (stride == 1 && flat_groups < groups) {
      flat = true;
      groups = flat_groups;
    }
  }

  // Where a group begins in the region.
  std::int64_t place(std::int64_t group) const {
    return flat ? group * 16 : (group / across * pitch + group % across * 16) * stride;
  }

  // The output pixel at place number i of all groups, counted in the task; past its rows or columns: none.
  void pixel(std::int64_t i, std::int64_t& y, std::int64_t& x) const {
    const std::int64_t length = flat ? pitch : across * 16;
    y = i / length;
    x = i % length;
  }

  // Rows of the region that two groups, this one and the next, meet.
  std::int64_t rows_for(std::int64_t group) const {
    const std::int64_t last = group + 1 < groups ? group + 1 : groups - 1;
    const std::int64_t row = flat ? (last * 16 + 15) / pitch : last / across;
    const std::int64_t met = (row < rows ? row : rows - 1) * stride + taps_y;
    return met < region_rows ? met : region_rows;
  }

  // Bytes of a run's part of the region: what the last group reads past its end included, and never a multiple of the
  // cache's 4 KiB.
  std::int64_t plane() const { return ((region_rows * pitch + 16 * stride) | 1) * 4 * kTilesRun; }

  std::int64_t region_floats() const { return runs * plane() / 4; }

  std::int64_t scratch() const { return region_floats() + 2 * kTilesSums + groups * 16; }
};

}  // namespace

// Of a product of matrices: rows in a task at most, and how many values of the sums' index are split before the next ones.
constexpr std::int64_t kSplitRows = 256;
constexpr std::int64_t kSplitDepth = 1024;

namespace amx {
void tiles(const Call& call, const Phase& phase, const TilesTask& task, float* scratch);

// packed: a panel of columns, [depth / 32, smaller and larger parts, columns / 16, tile].
void split_right(const Matrix& right, std::int64_t depth, std::int64_t first, std::int64_t width, float* packed);
void multiply_split_rows(const MatrixProduct& product, const float* packed, std::int64_t first, std::int64_t rows,
                         float* scratch);
}  // namespace amx

}  // namespace shade_fast::cpu
