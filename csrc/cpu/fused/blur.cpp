// Inner loops of a blur with one small kernel for all channels, and of its gradient, one row of the result at a time:
// each result pixel is a weighted sum of pixels, whose rows and columns are listed with their taps.
#include "../layers.h"
#include "../vector/epilogue.h"
#include "../vector/windows.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

struct Term {
  std::int64_t source;
  std::int64_t tap;
};

// A pixel and its mirror images beyond either edge are each in at most kLargestKernel windows.
struct Terms {
  Term term[3 * kLargestKernel];
  std::int64_t count = 0;

  void add(std::int64_t source, std::int64_t tap) { term[count++] = {source, tap}; }
};

inline void list_pixels(const Axis& axis, std::int64_t window, Terms& terms) {
  terms.count = 0;
  const std::int64_t first = axis.first_pixel(window);
  for (std::int64_t tap = 0; tap < axis.kernel; ++tap) {
    std::int64_t pixel = first + tap;
    if (pixel < 0) pixel = -pixel;
    if (pixel >= axis.size) pixel = 2 * (axis.size - 1) - pixel;
    terms.add(pixel, tap);
  }
}

inline void add_windows(const Axis& axis, std::int64_t pixel, Range covering, Terms& terms) {
  for (std::int64_t window = covering.begin; window < covering.end; ++window) {
    terms.add(window, pixel - axis.first_pixel(window));
  }
}

// `covering`: the windows that the pixel itself is in.
inline void list_windows(const Axis& axis, std::int64_t pixel, Range covering, Terms& terms) {
  terms.count = 0;
  add_windows(axis, pixel, covering, terms);
  if (pixel > 0 && pixel <= axis.pad) add_windows(axis, -pixel, axis.covering(-pixel), terms);
  const std::int64_t mirrored = 2 * (axis.size - 1) - pixel;
  if (pixel < mirrored && axis.first_pixel(axis.windows - 1) + axis.kernel > mirrored) {
    add_windows(axis, mirrored, axis.covering(mirrored), terms);
  }
}

// Calls work(lanes, sum, channel) with the sum of the terms for every vector of a pixel's channels, several vectors
// together, so that each tap is fetched once for all.
template <typename Full, typename Work>
SHADE_FAST_LANES void weigh(const Terms& rows, const Terms& columns, const float* taps, std::int64_t kernel,
                            const float* from, std::int64_t row_values, std::int64_t channels, const Work& work) {
  for_channels_together<4, Full>(channels, [&](const auto& lanes, auto count, std::int64_t channel) {
    constexpr int kCount = decltype(count)::value;
    Vector totals[kCount] = {};
    for (std::int64_t i = 0; i < rows.count; ++i) {
      const float* const row = from + rows.term[i].source * row_values + channel;
      const float* const row_taps = taps + rows.term[i].tap * kernel;
      for (std::int64_t j = 0; j < columns.count; ++j) {
        const float tap = row_taps[columns.term[j].tap];
        const float* const pixel = row + columns.term[j].source * channels;
        for (int k = 0; k < kCount; ++k) totals[k] += tap * lanes.load(pixel + k * kLanes);
      }
    }
    for (int k = 0; k < kCount; ++k) work(lanes, totals[k], channel + k * kLanes);
  });
}

void forward_row(const float* image, const float* taps, float* result, const Window& window, std::int64_t y) {
  const Axis across = columns(window);
  const std::int64_t channels = window.channels;
  Terms row_terms, column_terms;
  list_pixels(rows(window), y, row_terms);
  for (std::int64_t x = 0; x < window.out_width; ++x) {
    list_pixels(across, x, column_terms);
    weigh<Whole>(row_terms, column_terms, taps, window.kernel, image, window.width * channels, channels,
                 [&](const auto& lanes, Vector sum, std::int64_t channel) {
                   lanes.store(result + x * channels + channel, sum);
                 });
  }
}

void gradient_row(const float* gradient, const float* taps, float* result, const Window& window,
                  const Epilogue& parts, std::int64_t y, bool stream) {
  const Epilogue epilogue = parts;
  const Axis down = rows(window), across = columns(window);
  const std::int64_t channels = window.channels;
  Terms row_terms, column_terms;
  list_windows(down, y, down.covering(y), row_terms);
  with_stores(stream, [&](auto full) {
    Sweep sweep(across);
    for (std::int64_t x = 0; x < window.width; ++x) {
      list_windows(across, x, sweep.at(x), column_terms);
      weigh<decltype(full)>(row_terms, column_terms, taps, window.kernel, gradient, window.out_width * channels,
                            channels, [&](const auto& lanes, Vector sum, std::int64_t channel) {
                              apply_and_store(lanes, sum, epilogue, x, channel, channels, result);
                            });
    }
  });
}

}  // namespace

const BlurKernels blur = {forward_row, gradient_row};

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
