// A convolution with 1 to 8 filters, for which a panel of filters would be mostly empty: vectors lie along the runs of
// input values under the taps instead. Registers hold the sums of a few neighbouring pixels for every filter, one for
// each lane, which are added up at the end; 2 * taps * channels operations for each output value, and one load for
// each filter and pixel to filters * pixels multiply-adds.
#include <utility>

#include "../vector/epilogue.h"
#include "convolution.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kSums = 24;
#else
constexpr int kSums = 10;
#endif

constexpr int pixels_at_once(int filters) { return kSums / filters < 8 ? kSums / filters : 8; }

template <int half, int... lanes>
Vector add_lanes(Vector a, Vector b, std::integer_sequence<int, lanes...>) {
  const Vector kept = __builtin_shufflevector(a, b, ((lanes & half) != 0 ? kLanes + lanes : lanes)...);
  const Vector moved = __builtin_shufflevector(a, b, ((lanes & half) != 0 ? kLanes + lanes - half : lanes + half)...);
  return kept + moved;
}

// Lane i of the result is the sum of the lanes of vectors[i].
template <int half = 1>
Vector totals(const Vector* vectors) {
  if constexpr (half == kLanes) {
    return vectors[0];
  } else {
    Vector sums[kLanes / (2 * half)];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes / (2 * half); ++i) {
      sums[i] = add_lanes<half>(vectors[2 * i], vectors[2 * i + 1], std::make_integer_sequence<int, kLanes>{});
    }
    return totals<2 * half>(sums);
  }
}

// One row of a phase's output pixels.
struct Row {
  const Call& call;
  const Phase& phase;
  std::int64_t image, y;
  std::int64_t first_tap, end_tap;  // the rows of taps inside the image

  Row(const Call& called, const Phase& of, std::int64_t number)
      : call(called), phase(of), image(number / of.rows), y(number % of.rows) {
    const std::int64_t top = y * call.convolution.stride + phase.offset_y;
    first_tap = clamp(-top, 0, phase.taps_y);
    end_tap = clamp(call.convolution.height - top, first_tap, phase.taps_y);
  }

  // Where the run of pixel x, row of taps `tap`, begins in the input; before the image's row where it is cut.
  std::int64_t run(std::int64_t x, std::int64_t tap) const {
    const Convolution& c = call.convolution;
    const std::int64_t v = y * c.stride + phase.offset_y + tap, u = x * c.stride + phase.offset_x;
    return ((image * c.height + v) * c.width + u) * c.channels;
  }
};

template <int filters, int pixels>
inline void add_products(Vector (&sum)[pixels][filters], const Block (&value)[pixels], const float* weights) {
  for (int part = 0; part < kParts; ++part) {
#pragma GCC unroll 8
    for (int filter = 0; filter < filters; ++filter) {
      const Vector weight = load(weights + filter * kBlock + part * kLanes);
#pragma GCC unroll 8
      for (int pixel = 0; pixel < pixels; ++pixel) sum[pixel][filter] += weight * value[pixel].part[part];
    }
  }
}

template <int filters, int pixels>
void store_pixels(const Row& row, std::int64_t x, const Vector (&sum)[pixels][filters]) {
  constexpr int values = pixels * filters, vectors = (values + kLanes - 1) / kLanes;
  const Convolution& c = row.call.convolution;
  const Phase& phase = row.phase;
  float value[vectors * kLanes + kBlock] = {};
#pragma GCC unroll 16
  for (int i = 0; i < vectors; ++i) {
    Vector of[kLanes] = {};
#pragma GCC unroll 16
    for (int lane = 0; lane < kLanes; ++lane) {
      const int place = i * kLanes + lane;
      if (place < values) of[lane] = sum[place / filters][place % filters];
    }
    store(value + i * kLanes, totals(of));
  }
  const std::int64_t out_y = phase.first_y + row.y * phase.step, out_x = phase.first_x + x * phase.step;
  const std::int64_t target = (row.image * c.out_height + out_y) * c.out_width + out_x;
  const Epilogue epilogue = row.call.epilogue;
  for (int pixel = 0; pixel < pixels; ++pixel) {
    apply_and_store_block(load_block(value + pixel * filters, filters), epilogue, target + pixel * phase.step, 0, filters,
                 row.call.result);
  }
}

// Pixels whose taps all lie between the image's left and right edge.
template <int filters, int pixels>
void inner_pixels(const Row& row, std::int64_t x) {
  const Convolution& c = row.call.convolution;
  const std::int64_t run = row.phase.taps_x * c.channels;
  const std::int64_t step = c.stride * c.channels;
  Vector sum[pixels][filters] = {};
  for (std::int64_t tap = row.first_tap; tap < row.end_tap; ++tap) {
    const float* from = row.call.input + row.run(x, tap);
    const float* weights = row.call.packed + row.phase.weights + tap * round_up(run, kBlock) * filters;
    Block value[pixels];
    std::int64_t k = 0;
    for (; k + kBlock <= run; k += kBlock, weights += filters * kBlock) {
#pragma GCC unroll 8
      for (int pixel = 0; pixel < pixels; ++pixel) value[pixel] = load_block(from + pixel * step + k);
      add_products(sum, value, weights);
    }
    if (k == run) continue;
    for (int pixel = 0; pixel < pixels; ++pixel) value[pixel] = load_block(from + pixel * step + k, run - k);
    add_products(sum, value, weights);
  }
  store_pixels(row, x, sum);
}

template <int filters>
void edge_pixel(const Row& row, std::int64_t x) {
  const Convolution& c = row.call.convolution;
  const std::int64_t run = row.phase.taps_x * c.channels;
  const std::int64_t left = x * c.stride + row.phase.offset_x;
  const std::int64_t low = clamp(-left, 0, row.phase.taps_x) * c.channels;
  const std::int64_t high = clamp(c.width - left, 0, row.phase.taps_x) * c.channels;
  Vector sum[1][filters] = {};
  for (std::int64_t tap = row.first_tap; tap < row.end_tap; ++tap) {
    const std::int64_t base = row.run(x, tap);
    const float* weights = row.call.packed + row.phase.weights + tap * round_up(run, kBlock) * filters;
    for (std::int64_t k = 0; k < run; k += kBlock, weights += filters * kBlock) {
      float values[kBlock];
      for (std::int64_t i = 0; i < kBlock; ++i) {
        values[i] = k + i >= low && k + i < high ? row.call.input[base + k + i] : 0.0f;
      }
      const Block value[1] = {load_block(values)};
      add_products(sum, value, weights);
    }
  }
  store_pixels(row, x, sum);
}

template <int filters, int pixels>
void dispatch_pixels(const Row& row, std::int64_t x, std::int64_t count) {
  if constexpr (pixels > 1) {
    if (count < pixels) return dispatch_pixels<filters, pixels - 1>(row, x, count);
  }
  inner_pixels<filters, pixels>(row, x);
}

template <int filters>
void run_row(const Row& row) {
  constexpr std::int64_t pixels = pixels_at_once(filters);
  const Convolution& c = row.call.convolution;
  const Phase& phase = row.phase;
  const std::int64_t last_left = c.width - phase.taps_x - phase.offset_x;
  const std::int64_t end = clamp(last_left >= 0 ? last_left / c.stride + 1 : 0, 0, phase.columns);
  const std::int64_t first = clamp(ceil_div(clamp(-phase.offset_x, 0, c.stride * end), c.stride), 0, end);
  std::int64_t x = 0;
  for (; x < first; ++x) edge_pixel<filters>(row, x);
  for (; x < end; x += clamp(end - x, 0, pixels)) dispatch_pixels<filters, pixels>(row, x, end - x);
  for (; x < phase.columns; ++x) edge_pixel<filters>(row, x);
}

template <int filters>
void dispatch_filters(const Row& row) {
  if constexpr (filters > 1) {
    if (row.call.convolution.filters < filters) return dispatch_filters<filters - 1>(row);
  }
  run_row<filters>(row);
}

}  // namespace

void narrow(const Call& call, const Phase& phase, std::int64_t row) {
  dispatch_filters<kMostNarrowFilters>(Row(call, phase, row));
}

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
