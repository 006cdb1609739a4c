#include "pack.h"

#include <algorithm>

namespace shade_fast::cpu {
namespace {

// How one axis of a phase meets the kernel.
struct Axis {
  std::int64_t first_tap, taps, offset, outputs;
};

Axis axis(std::int64_t kernel, std::int64_t up, std::int64_t pad, std::int64_t outputs, std::int64_t first) {
  const std::int64_t first_tap = ((pad - first) % up + up) % up;
  return {first_tap, ceil_div(std::max<std::int64_t>(kernel - first_tap, 0), up), (first + first_tap - pad) / up,
          ceil_div(std::max<std::int64_t>(outputs - first, 0), up)};
}

}  // namespace

std::int64_t phases(const Convolution& convolution) { return convolution.up * convolution.up; }

Phase phase(const Convolution& c, std::int64_t index) {
  const std::int64_t filters = round_up(c.filters, 16);
  std::int64_t weights = 0;
  for (std::int64_t earlier = 0;; ++earlier) {
    const std::int64_t first_y = earlier / c.up, first_x = earlier % c.up;
    const Axis y = axis(c.kernel_height, c.up, c.pad_top, c.out_height, first_y);
    const Axis x = axis(c.kernel_width, c.up, c.pad_left, c.out_width, first_x);
    if (earlier == index) {
      return {y.outputs, x.outputs, first_y,     first_x,     c.up,   y.taps, x.taps,
              y.offset,  x.offset,  y.first_tap, x.first_tap, weights};
    }
    weights += filters * y.taps * x.taps * c.channels;
  }
}

void pack_direct(const Convolution& c, std::int64_t panel, const float* weights, float* packed) {
  for (std::int64_t index = 0; index < phases(c); ++index) {
    const Phase part = phase(c, index);
    for (std::int64_t first = 0; first < c.filters; first += panel) {
      const std::int64_t width = std::min(panel, round_up(c.filters - first, 16));
      for (std::int64_t i = 0; i < part.taps_y; ++i) {
        for (std::int64_t j = 0; j < part.taps_x; ++j) {
          const std::int64_t tap =
              (part.first_tap_y + i * part.step) * c.kernel_width + part.first_tap_x + j * part.step;
          for (std::int64_t channel = 0; channel < c.channels; ++channel) {
            for (std::int64_t filter = first; filter < first + width; ++filter) {
              const std::int64_t source = (filter * c.channels + channel) * c.kernel_height * c.kernel_width + tap;
              *packed++ = filter < c.filters ? weights[source] : 0.0f;
            }
          }
        }
      }
    }
  }
}

}  // namespace shade_fast::cpu
