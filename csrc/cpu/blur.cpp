// Inner loops of a blur with one small kernel for all channels, and of its gradient, one row of the result at a time:
// each result pixel is a weighted sum of pixels, whose rows and columns are listed with their taps.
#include "lanes.h"
#include "layers.h"
#include "windows.h"

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

inline void list_windows_at(const Axis& axis, std::int64_t pixel, Terms& terms) {
  const Range covering = axis.covering(pixel);
  for (std::int64_t window = covering.begin; window < covering.end; ++window) {
    terms.add(window, pixel - axis.first_pixel(window));
  }
}

inline void list_windows(const Axis& axis, std::int64_t pixel, Terms& terms) {
  terms.count = 0;
  list_windows_at(axis, pixel, terms);
  if (pixel > 0 && pixel <= axis.pad) list_windows_at(axis, -pixel, terms);
  if (pixel < axis.size - 1) list_windows_at(axis, 2 * (axis.size - 1) - pixel, terms);
}

template <typename Lanes>
SHADE_FAST_LANES Vector weighted_sum(const Lanes& lanes, const Terms& rows, const Terms& columns, const float* taps,
                                     std::int64_t kernel, const float* from, std::int64_t row_values,
                                     std::int64_t channels) {
  Vector total{};
  for (std::int64_t i = 0; i < rows.count; ++i) {
    const float* const row = from + rows.term[i].source * row_values;
    const float* const row_taps = taps + rows.term[i].tap * kernel;
    for (std::int64_t j = 0; j < columns.count; ++j) {
      total += row_taps[columns.term[j].tap] * lanes.load(row + columns.term[j].source * channels);
    }
  }
  return total;
}

}  // namespace

void blur_row(const float* image, const float* taps, float* result, const Window& window, std::int64_t y) {
  const Axis across = columns(window);
  const std::int64_t channels = window.channels;
  Terms row_terms, column_terms;
  list_pixels(rows(window), y, row_terms);
  for (std::int64_t x = 0; x < window.out_width; ++x) {
    list_pixels(across, x, column_terms);
    for_channels<Whole>(channels, [&](const auto& lanes, std::int64_t channel) {
      lanes.store(result + x * channels + channel,
                  weighted_sum(lanes, row_terms, column_terms, taps, window.kernel, image + channel,
                               window.width * channels, channels));
    });
  }
}

void blur_gradient_row(const float* gradient, const float* taps, float* result, const Window& window,
                       const Finish& finish, std::int64_t y) {
  const Axis across = columns(window);
  const std::int64_t channels = window.channels;
  Terms row_terms, column_terms;
  list_windows(rows(window), y, row_terms);
  for (std::int64_t x = 0; x < window.width; ++x) {
    list_windows(across, x, column_terms);
    for_channels<Whole>(channels, [&](const auto& lanes, std::int64_t channel) {
      const Vector total = weighted_sum(lanes, row_terms, column_terms, taps, window.kernel, gradient + channel,
                                        window.out_width * channels, channels);
      finish_and_store(lanes, total, finish, x, channel, channels, result);
    });
  }
}

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
