#include "pack.h"

#include <algorithm>

#include "../pixel.h"
#include "tiles.h"

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

std::int64_t phase_size(Algorithm algorithm, const Convolution& c, const Phase& phase) {
  if (algorithm == Algorithm::tiles) {
    return phase.taps_y * phase.taps_x * round_up(c.channels, kTilesRun) * round_up(c.filters, 16);
  }
  const std::int64_t run = phase.taps_x * c.channels;
  return phase.taps_y * (algorithm == Algorithm::narrow ? c.filters * round_up(run, 16) : round_up(c.filters, 16) * run);
}

// The place of a phase's tap in the whole kernel.
std::int64_t whole_tap(const Convolution& c, const Phase& phase, std::int64_t i, std::int64_t j) {
  return (phase.first_tap_y + i * phase.step) * c.kernel_width + phase.first_tap_x + j * phase.step;
}

// Row p of an axis' transform of the weights: the powers 0, 1, 2 of point p by the product of its distances to the other
// finite points; of infinity: the last weight.
struct WeightTransform {
  double rows[8][3] = {};

  explicit WeightTransform(std::int64_t outputs) {
    double points[7] = {0.0};
    const std::int64_t finite = outputs + 1;
    for (std::int64_t i = 0; i < outputs; ++i) {
      points[1 + i] = kWinogradPoints[outputs / 2 - 1][i / 2] * (i % 2 == 0 ? 1.0 : -1.0);
    }
    for (std::int64_t i = 0; i < finite; ++i) {
      double distances = 1.0;
      for (std::int64_t j = 0; j < finite; ++j) distances *= i == j ? 1.0 : points[i] - points[j];
      rows[i][0] = 1.0 / distances;
      rows[i][1] = points[i] / distances;
      rows[i][2] = points[i] * points[i] / distances;
    }
    rows[finite][2] = 1.0;
  }
};

bool has_phases(Algorithm algorithm) {
  return algorithm == Algorithm::direct || algorithm == Algorithm::narrow || algorithm == Algorithm::tiles;
}

}  // namespace

std::int64_t phases(const Convolution& convolution) { return convolution.up * convolution.up; }

Phase phase(Algorithm algorithm, const Convolution& c, std::int64_t index) {
  std::int64_t weights = 0;
  for (std::int64_t earlier = 0;; ++earlier) {
    const std::int64_t first_y = earlier / c.up, first_x = earlier % c.up;
    const Axis y = axis(c.kernel_height, c.up, c.pad_top, c.out_height, first_y);
    const Axis x = axis(c.kernel_width, c.up, c.pad_left, c.out_width, first_x);
    const Phase found = {y.outputs, x.outputs, first_y,     first_x,     c.up,   y.taps, x.taps,
                         y.offset,  x.offset,  y.first_tap, x.first_tap, weights};
    if (earlier == index) return found;
    weights += phase_size(algorithm, c, found);
  }
}

std::int64_t packed_size(Algorithm algorithm, const Convolution& c) {
  if (has_phases(algorithm)) {
    const Phase last = phase(algorithm, c, phases(c) - 1);
    return last.weights + phase_size(algorithm, c, last);
  }
  const std::int64_t points = static_cast<std::int64_t>(algorithm) + 2;
  return round_up(c.filters, 16) * c.channels * points * points;
}

void pack_direct(const Convolution& c, std::int64_t panel, const float* weights, float* packed) {
  for (std::int64_t index = 0; index < phases(c); ++index) {
    const Phase part = phase(Algorithm::direct, c, index);
    for (std::int64_t first = 0; first < c.filters; first += panel) {
      const std::int64_t width = std::min(panel, round_up(c.filters - first, 16));
      for (std::int64_t i = 0; i < part.taps_y; ++i) {
        for (std::int64_t j = 0; j < part.taps_x; ++j) {
          const std::int64_t tap = whole_tap(c, part, i, j);
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

void pack_narrow(const Convolution& c, const float* weights, float* packed) {
  std::fill_n(packed, packed_size(Algorithm::narrow, c), 0.0f);
  for (std::int64_t index = 0; index < phases(c); ++index) {
    const Phase part = phase(Algorithm::narrow, c, index);
    const std::int64_t run = round_up(part.taps_x * c.channels, 16);
    for (std::int64_t i = 0; i < part.taps_y; ++i) {
      for (std::int64_t j = 0; j < part.taps_x; ++j) {
        const std::int64_t tap = whole_tap(c, part, i, j);
        for (std::int64_t channel = 0; channel < c.channels; ++channel) {
          const std::int64_t k = j * c.channels + channel;
          for (std::int64_t filter = 0; filter < c.filters; ++filter) {
            packed[part.weights + i * run * c.filters + (k / 16 * c.filters + filter) * 16 + k % 16] =
                weights[(filter * c.channels + channel) * c.kernel_height * c.kernel_width + tap];
          }
        }
      }
    }
  }
}

void pack_winograd(const Convolution& c, std::int64_t outputs, std::int64_t panel, const float* weights,
                   float* packed) {
  const WeightTransform transform(outputs);
  const std::int64_t points = outputs + 2;
  for (std::int64_t filter = 0; filter < round_up(c.filters, 16); ++filter) {
    const std::int64_t first = filter / panel * panel;
    const std::int64_t width = std::min(panel, round_up(c.filters, 16) - first);
    for (std::int64_t channel = 0; channel < c.channels; ++channel) {
      double kernel[9] = {};
      if (filter < c.filters) std::copy_n(weights + (filter * c.channels + channel) * 9, 9, kernel);
      float* to = packed + first * points * points * c.channels + channel * width + (filter - first);
      for (std::int64_t y = 0; y < points; ++y) {
        double row[3];
        for (int j = 0; j < 3; ++j) {
          row[j] = 0.0;
          for (int i = 0; i < 3; ++i) row[j] += transform.rows[y][i] * kernel[3 * i + j];
        }
        for (std::int64_t x = 0; x < points; ++x, to += c.channels * width) {
          double value = 0.0;
          for (int j = 0; j < 3; ++j) value += row[j] * transform.rows[x][j];
          *to = static_cast<float>(value);
        }
      }
    }
  }
}

void pack_tiles(const Convolution& c, const float* weights, float* packed) {
  constexpr std::int64_t kTileValues = 512;
  std::fill_n(packed, packed_size(Algorithm::tiles, c), 0.0f);
  auto* const values = reinterpret_cast<std::uint16_t*>(packed);
  for (std::int64_t index = 0; index < phases(c); ++index) {
    const Phase part = phase(Algorithm::tiles, c, index);
    const std::int64_t taps = part.taps_y * part.taps_x, steps = ceil_div(c.channels, kTilesRun) * taps;
    for (std::int64_t filter = 0; filter < c.filters; ++filter) {
      const std::int64_t panel = filter / kTilesPanel * kTilesPanel;
      const std::int64_t tiles = round_up(std::min(kTilesPanel, c.filters - panel), 16) / 16;
      for (std::int64_t channel = 0; channel < c.channels; ++channel) {
        for (std::int64_t tap = 0; tap < taps; ++tap) {
          const std::int64_t place = whole_tap(c, part, tap / part.taps_x, tap % part.taps_x);
          const float value = weights[(filter * c.channels + channel) * c.kernel_height * c.kernel_width + place];
          const std::int64_t tile = panel / 16 * steps * 2 + (channel / kTilesRun * taps + tap) * 2 * tiles;
          std::uint16_t* const to = values + 2 * part.weights + (tile + (filter - panel) / 16) * kTileValues +
                                    channel % kTilesRun / 2 * 32 + filter % 16 * 2 + channel % 2;
          to[tiles * kTileValues] = to_bfloat16(value);
          to[0] = to_bfloat16(value - from_bfloat16(to[tiles * kTileValues]));
        }
      }
    }
  }
}

}  // namespace shade_fast::cpu
