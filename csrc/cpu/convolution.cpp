// Convolutions with frozen weights: check the arguments, cut the work into tasks, share them out to threads.
#include "convolution.h"

#include <algorithm>
#include <atomic>
#include <new>

#include "isa.h"
#include "pack.h"
#include "threads.h"
#include "tiles.h"

namespace shade_fast::cpu {
namespace {

// Operations for which a further thread is worth its waking.
constexpr double kOperationsPerThread = 1e6;

// A result of 8 MiB leaves the second-level caches before anyone reads it.
constexpr std::int64_t kStreamedResult = 2 * 1024 * 1024;

// Of tiles(): values of the split input, and output columns, in a task.
constexpr std::int64_t kTilesRegion = 128 * 1024;
constexpr std::int64_t kTilesColumns = 128;

// Of direct().
constexpr std::int64_t kPixelsPerTask = 224;

bool is_sound(const Convolution& c) {
  return c.images >= 0 && c.height >= 0 && c.width >= 0 && c.channels >= 1 && c.out_height >= 0 && c.out_width >= 0 &&
         c.filters >= 1 && c.kernel_height >= 1 && c.kernel_width >= 1 && c.stride >= 1 && c.up >= 1 &&
         (c.stride == 1 || c.up == 1);
}

std::int64_t worthwhile_threads(const Convolution& c, int threads) {
  const double operations = static_cast<double>(c.images * c.out_height * c.out_width * c.filters) *
                            static_cast<double>(c.kernel_height * c.kernel_width * c.channels) /
                            static_cast<double>(c.up * c.up);
  return std::clamp<std::int64_t>(static_cast<std::int64_t>(operations / kOperationsPerThread), 1, threads);
}

// Calls work(task, scratch) for every task; `slice` floats of scratch memory belong to each thread.
template <typename Work>
void share_out(std::int64_t tasks, std::int64_t threads, float* scratch, std::int64_t slice, const Work& work) {
  std::atomic<std::int64_t> next{0};
  const std::int64_t sharers = std::min(tasks, threads);
  parallel_for(sharers, 1, static_cast<int>(sharers), [&](std::int64_t sharer) {
    for (std::int64_t task = next++; task < tasks; task = next++) work(task, scratch + sharer * slice);
  });
}

std::int64_t direct_scratch(const Convolution& c) { return kDirectPixels * (round_up(c.filters, 16) + kDirectDepth); }

// Every output pixel is the product of the input pixel at its own place.
bool is_pointwise(const Convolution& c) {
  return c.kernel_height == 1 && c.kernel_width == 1 && c.stride == 1 && c.up == 1 && c.pad_top == 0 &&
         c.pad_left == 0 && c.height == c.out_height && c.width == c.out_width;
}

// All pixels in one row, so that narrow images too have many pixels in a row for each block of weights.
Convolution flattened(const Convolution& c) {
  Convolution flat = c;
  flat.images = flat.height = flat.out_height = 1;
  flat.width = flat.out_width = c.images * c.height * c.width;
  return flat;
}

void run_pointwise(const ConvolutionKernels& kernels, const Call& call, float* scratch, int threads) {
  Call flat = call;
  flat.convolution = flattened(call.convolution);
  const std::int64_t pixels = flat.convolution.width;
  const std::int64_t sharers = worthwhile_threads(call.convolution, threads);
  const std::int64_t tasks = std::min(pixels, round_up(ceil_div(pixels, kPixelsPerTask), sharers));
  share_out(tasks, sharers, scratch, direct_scratch(call.convolution), [&](std::int64_t task, float* own) {
    Phase part = phase(Algorithm::direct, flat.convolution, 0);
    part.first_x = part.offset_x = pixels * task / tasks;
    part.columns = pixels * (task + 1) / tasks - part.first_x;
    kernels.direct(flat, part, 0, 1, own);
  });
}

void run_direct(const ConvolutionKernels& kernels, const Call& call, float* scratch, int threads) {
  const Convolution& c = call.convolution;
  if (is_pointwise(c)) return run_pointwise(kernels, call, scratch, threads);
  const std::int64_t sharers = worthwhile_threads(c, threads);
  for (std::int64_t index = 0; index < phases(c); ++index) {
    const Phase part = phase(Algorithm::direct, c, index);
    if (part.pixels(c) == 0) continue;
    const std::int64_t rows = c.images * part.rows;
    const std::int64_t tasks = std::min(rows, round_up(ceil_div(part.pixels(c), kPixelsPerTask), sharers));
    share_out(tasks, sharers, scratch, direct_scratch(c), [&](std::int64_t task, float* own) {
      const std::int64_t first = rows * task / tasks;
      kernels.direct(call, part, first, rows * (task + 1) / tasks - first, own);
    });
  }
}

void run_narrow(const ConvolutionKernels& kernels, const Call& call, int threads) {
  const Convolution& c = call.convolution;
  for (std::int64_t index = 0; index < phases(c); ++index) {
    const Phase part = phase(Algorithm::narrow, c, index);
    if (part.pixels(c) == 0) continue;
    share_out(c.images * part.rows, worthwhile_threads(c, threads), nullptr, 0,
              [&](std::int64_t row, float*) { kernels.narrow(call, part, row); });
  }
}

// How the tiles and filters of a Winograd convolution are cut into tasks: blocks of tiles, and where those are too few
// for the threads, parts of the filters.
struct WinogradPlan {
  std::int64_t outputs, tiles, filters, panel;
  std::int64_t blocks, tiles_at_once;
  std::int64_t parts, filters_in_part;

  WinogradPlan(Algorithm algorithm, const Convolution& c, const ConvolutionKernels& kernels, std::int64_t sharers)
      : outputs(static_cast<std::int64_t>(algorithm)),
        tiles(c.images * ceil_div(c.out_height, outputs) * ceil_div(c.out_width, outputs)),
        filters(round_up(c.filters, 16)),
        panel(kernels.panel_width()) {
    const std::int64_t needed = std::max<std::int64_t>(ceil_div(tiles, kernels.winograd_tiles(c.channels)), 1);
    parts = std::min(ceil_div(sharers, needed), ceil_div(filters, panel));
    blocks = parts > 1 ? needed : std::min(std::max<std::int64_t>(tiles, 1), round_up(needed, sharers));
    tiles_at_once = ceil_div(tiles, blocks);
    filters_in_part = round_up(ceil_div(filters, parts), panel);
  }

  std::int64_t scratch(const Convolution& c) const {
    const std::int64_t points = (outputs + 2) * (outputs + 2);
    return points * (winograd_step(c.channels, tiles_at_once) + winograd_step(panel, tiles_at_once));
  }
};

void run_winograd(const ConvolutionKernels& kernels, Algorithm algorithm, const Call& call, float* scratch, int threads) {
  const Convolution& c = call.convolution;
  const std::int64_t sharers = worthwhile_threads(c, threads);
  const WinogradPlan plan(algorithm, c, kernels, sharers);
  share_out(plan.blocks * plan.parts, sharers, scratch, plan.scratch(c), [&](std::int64_t task, float* own) {
    const std::int64_t block = task / plan.parts, part = task % plan.parts;
    const std::int64_t first = plan.tiles * block / plan.blocks;
    const std::int64_t first_filter = part * plan.filters_in_part;
    const std::int64_t end_filter = std::min(plan.filters, first_filter + plan.filters_in_part);
    const std::int64_t tiles = plan.tiles * (block + 1) / plan.blocks - first;
    kernels.winograd(call, {plan.outputs, first, tiles, first_filter, end_filter}, own);
  });
}

// How a phase's output pixels are cut into tasks: as many rows of at most so many columns as have their split input in
// the second-level cache beside a panel's weights, but at least four; and where those tasks are too few for the threads,
// parts of the filters.
struct TilesPlan {
  std::int64_t down, across, images, parts, filters;
  std::int64_t rows, columns, filters_in_part;

  TilesPlan(const Convolution& c, const Phase& phase, std::int64_t sharers)
      : across(ceil_div(phase.columns, kTilesColumns)), images(c.images), filters(round_up(c.filters, 16)) {
    columns = round_up(ceil_div(phase.columns, across), 16);
    const std::int64_t pitch = TilesLayout(c, phase, 1, columns).pitch;
    const std::int64_t fitting = kTilesRegion / (round_up(c.channels, kTilesRun) * pitch);
    const std::int64_t wished = std::max<std::int64_t>((fitting - phase.taps_y) / c.stride + 1, 4);
    const std::int64_t others = images * across;
    const std::int64_t needed = round_up(ceil_div(phase.rows, wished) * others, sharers);
    down = std::clamp<std::int64_t>(ceil_div(needed, others), 1, phase.rows);
    rows = ceil_div(phase.rows, down);
    filters_in_part = round_up(ceil_div(filters, ceil_div(sharers, down * others)), kTilesPanel);
    parts = ceil_div(filters, filters_in_part);
  }

  std::int64_t tasks() const { return images * down * across * parts; }

  TilesTask task(const Phase& phase, std::int64_t index) const {
    const std::int64_t part = index % parts, column = index / parts % across * columns;
    const std::int64_t row = index / (parts * across) % down, first_row = phase.rows * row / down;
    return {index / (parts * across * down),
            first_row,
            phase.rows * (row + 1) / down - first_row,
            column,
            std::min(columns, phase.columns - column),
            part * filters_in_part,
            std::min(filters, (part + 1) * filters_in_part)};
  }

  std::int64_t scratch(const Convolution& c, const Phase& phase) const {
    return round_up(TilesLayout(c, phase, rows, columns).scratch(), 16);
  }
};

#if defined(SHADE_FAST_AMX)
void run_tiles(const Call& call, float* scratch, int threads) {
  const Convolution& c = call.convolution;
  const std::int64_t sharers = worthwhile_threads(c, threads);
  for (std::int64_t index = 0; index < phases(c); ++index) {
    const Phase part = phase(Algorithm::tiles, c, index);
    if (part.pixels(c) == 0) continue;
    const TilesPlan plan(c, part, sharers);
    share_out(plan.tasks(), sharers, scratch, plan.scratch(c, part), [&](std::int64_t task, float* own) {
      amx::tiles(call, part, plan.task(part, task), own);
    });
  }
}
#else
void run_tiles(const Call&, float*, int) {}
#endif

std::int64_t tiles_scratch(const Convolution& c, std::int64_t sharers) {
  std::int64_t most = 0;
  for (std::int64_t index = 0; index < phases(c); ++index) {
    const Phase part = phase(Algorithm::tiles, c, index);
    if (part.pixels(c) > 0) most = std::max(most, TilesPlan(c, part, sharers).scratch(c, part));
  }
  return most;
}

}  // namespace

bool supports(Algorithm algorithm, const Convolution& c) {
  if (!is_sound(c)) return false;
  switch (algorithm) {
    case Algorithm::direct: return true;
    case Algorithm::narrow: return c.filters <= kMostNarrowFilters;
    case Algorithm::tiles: return selected_tiles();
    case Algorithm::winograd2:
    case Algorithm::winograd4:
    case Algorithm::winograd6: return c.kernel_height == 3 && c.kernel_width == 3 && c.stride == 1 && c.up == 1;
  }
  return false;
}

std::int64_t packed_weights_size(Algorithm algorithm, const Convolution& c) {
  return supports(algorithm, c) ? packed_size(algorithm, c) : 0;
}

Status pack_weights(Algorithm algorithm, const Convolution& c, const float* weights, float* packed) {
  if (!supports(algorithm, c) || weights == nullptr || packed == nullptr) return Status::bad_argument;
  const std::int64_t panel = SHADE_FAST_SELECTED(convolution).panel_width();
  switch (algorithm) {
    case Algorithm::direct: pack_direct(c, panel, weights, packed); break;
    case Algorithm::narrow: pack_narrow(c, weights, packed); break;
    case Algorithm::tiles: pack_tiles(c, weights, packed); break;
    default: pack_winograd(c, static_cast<std::int64_t>(algorithm), panel, weights, packed);
  }
  return Status::ok;
}

std::int64_t convolution_scratch(Algorithm algorithm, const Convolution& c, int threads) {
  if (!supports(algorithm, c) || threads < 1) return 0;
  const std::int64_t sharers = worthwhile_threads(c, threads);
  switch (algorithm) {
    case Algorithm::direct: return direct_scratch(c) * sharers + 16;
    case Algorithm::narrow: return 0;
    case Algorithm::tiles: return tiles_scratch(c, sharers) * sharers + 16;
    default: return WinogradPlan(algorithm, c, SHADE_FAST_SELECTED(convolution), sharers).scratch(c) * sharers + 16;
  }
}

Status convolve(Algorithm algorithm, const Convolution& c, const float* packed, const float* input, float* result,
                const Epilogue& epilogue, float* scratch, int threads) try {
  if (!supports(algorithm, c) || threads < 1) return Status::bad_argument;
  const std::int64_t results = c.images * c.out_height * c.out_width;
  if (results == 0) return Status::ok;
  const bool reads = c.height * c.width > 0;
  const bool needs_scratch = algorithm != Algorithm::narrow;
  if (packed == nullptr || result == nullptr || (reads && input == nullptr) ||
      (needs_scratch && scratch == nullptr)) {
    return Status::bad_argument;
  }
  const ConvolutionKernels& kernels = SHADE_FAST_SELECTED(convolution);
  const bool whole_blocks = c.filters % 16 == 0 && reinterpret_cast<std::uintptr_t>(result) % 64 == 0;
  const Call call{c, packed, input, result, epilogue, whole_blocks && results * c.filters >= kStreamedResult};
  switch (algorithm) {
    case Algorithm::direct: run_direct(kernels, call, aligned(scratch), threads); break;
    case Algorithm::narrow: run_narrow(kernels, call, threads); break;
    case Algorithm::tiles: run_tiles(call, aligned(scratch), threads); break;
    default: run_winograd(kernels, algorithm, call, aligned(scratch), threads);
  }
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::out_of_memory;
}

}  // namespace shade_fast::cpu
