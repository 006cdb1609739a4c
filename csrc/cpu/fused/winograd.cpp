// Winograd's minimal filtering, F(m x m, 3 x 3) with m = 2, 4, 6 (arXiv 1509.09308): tiles of n x n input pixels,
// n = m + 2, become values at n x n pairs of points; at each pair the channels are summed by a product of matrices;
// the inverse transform gives m x m output pixels. n * n products of 9 * m * m for each pair of channel and filter.
//
// One axis' transform is the evaluation of polynomials at 0, +-a for each a of kWinogradPoints, and infinity: the rows of
// the input's matrix are the coefficients of the products of (x - point) over all other points, those of the result's
// the points' powers. +-a share their even and odd halves. The points, not 0, 1, 2, are those of small rounding errors.
#include "../vector/epilogue.h"
#include "convolution.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

template <int pairs>
struct Coefficients {
  float all[pairs + 1] = {};         // of the product of (x^2 - a^2) over all a, by powers of x^2
  float others[pairs][pairs] = {};   // over all a but one
  float power[pairs][2 * pairs] = {};

  constexpr Coefficients() {
    for (int left_out = 0; left_out <= pairs; ++left_out) {
      double product[pairs + 2] = {1.0};
      for (int pair = 0; pair < pairs; ++pair) {
        if (pair == left_out) continue;
        const double point = kWinogradPoints[pairs - 1][pair];
        for (int i = pairs; i >= 0; --i) product[i] = (i > 0 ? product[i - 1] : 0.0) - point * point * product[i];
      }
      for (int i = 0; i <= pairs; ++i) {
        if (left_out == pairs) {
          all[i] = static_cast<float>(product[i]);
        } else if (i < pairs) {
          others[left_out][i] = static_cast<float>(product[i]);
        }
      }
    }
    for (int pair = 0; pair < pairs; ++pair) {
      double value = 1.0;
      for (int i = 0; i < 2 * pairs; ++i, value *= kWinogradPoints[pairs - 1][pair]) {
        power[pair][i] = static_cast<float>(value);
      }
    }
  }
};

template <int pairs>
constexpr Coefficients<pairs> kCoefficients{};

// at: the values at 0, a, -a, b, -b, ..., infinity of the polynomial whose 2 * pairs + 2 coefficients are `in`.
template <int pairs>
inline void transform_input(const Vector (&in)[2 * pairs + 2], Vector (&at)[2 * pairs + 2]) {
  constexpr const Coefficients<pairs>& c = kCoefficients<pairs>;
  at[0] = in[2 * pairs];
  at[2 * pairs + 1] = in[2 * pairs + 1];
#pragma GCC unroll 8
  for (int i = 0; i < pairs; ++i) {
    at[0] += c.all[i] * in[2 * i];
    at[2 * pairs + 1] += c.all[i] * in[2 * i + 1];
  }
#pragma GCC unroll 8
  for (int pair = 0; pair < pairs; ++pair) {
    Vector even = in[2 * pairs], odd = in[2 * pairs - 1];
#pragma GCC unroll 8
    for (int i = 0; i < pairs - 1; ++i) {
      even += c.others[pair][i] * in[2 * i + 2];
      odd += c.others[pair][i] * in[2 * i + 1];
    }
    at[1 + 2 * pair] = even + c.power[pair][1] * odd;
    at[2 + 2 * pair] = even - c.power[pair][1] * odd;
  }
}

template <int pairs>
inline void transform_result(const Vector (&at)[2 * pairs + 2], Vector (&out)[2 * pairs]) {
  constexpr const Coefficients<pairs>& c = kCoefficients<pairs>;
  out[0] = at[0];
  Vector sum[pairs], difference[pairs];
#pragma GCC unroll 8
  for (int pair = 0; pair < pairs; ++pair) {
    sum[pair] = at[1 + 2 * pair] + at[2 + 2 * pair];
    difference[pair] = at[1 + 2 * pair] - at[2 + 2 * pair];
    out[0] += sum[pair];
  }
#pragma GCC unroll 8
  for (int i = 1; i < 2 * pairs; ++i) {
    const Vector* half = i % 2 == 0 ? sum : difference;
    out[i] = c.power[0][i] * half[0];
#pragma GCC unroll 8
    for (int pair = 1; pair < pairs; ++pair) out[i] += c.power[pair][i] * half[pair];
  }
  out[2 * pairs - 1] += at[2 * pairs + 1];
}

// A tile's place: its image, and its first output pixel.
struct Place {
  std::int64_t image, y, x;
};

template <int pairs>
class Winograd {
  static constexpr int kOutputs = 2 * pairs, kPoints = 2 * pairs + 2;

 public:
  Winograd(const Call& call, const WinogradTask& task, float* scratch)
      : call_(call),
        task_(task),
        channels_(call.convolution.channels),
        filters_(round_up(call.convolution.filters, kBlock)),
        at_(scratch),
        at_step_(winograd_step(channels_, task.tiles)),
        sums_(scratch + kPoints * kPoints * at_step_),
        sums_step_(winograd_step(panel_width(), task.tiles)) {}

  void run() const {
    Place at = first_place();
    for (std::int64_t tile = 0; tile < task_.tiles; ++tile, advance(at)) {
      for (std::int64_t channel = 0; channel < channels_; channel += kBlock) transform_tile(tile, at, channel);
    }
    // One panel after the other: its sums, and the weights of a few points, stay in the second-level cache.
    const std::int64_t panel = panel_width();
    for (std::int64_t filter = task_.first_filter; filter < task_.end_filter; filter += panel) {
      const std::int64_t width = clamp(filters_ - filter, 0, panel);
      multiply_panel(filter, width);
      for (std::int64_t block = 0; block < width; block += kBlock) store_filters(filter, block, width);
    }
  }

 private:
  Place first_place() const {
    const Convolution& c = call_.convolution;
    const std::int64_t across = ceil_div(c.out_width, kOutputs), down = ceil_div(c.out_height, kOutputs);
    const std::int64_t tile = task_.first_tile;
    return {tile / (across * down), tile / across % down * kOutputs, tile % across * kOutputs};
  }

  void advance(Place& at) const {
    const Convolution& c = call_.convolution;
    at.x += kOutputs;
    if (at.x < c.out_width) return;
    at.x = 0;
    at.y += kOutputs;
    if (at.y < c.out_height) return;
    at.y = 0;
    ++at.image;
  }

  // at: [n * n, channels / 16, tiles, 16].
  void transform_tile(std::int64_t tile, const Place& at, std::int64_t channel) const {
    const Convolution& c = call_.convolution;
    const std::int64_t y = at.y - c.pad_top, x = at.x - c.pad_left;
    const std::int64_t count = clamp(channels_ - channel, 0, kBlock);
    float* to = at_ + channel * task_.tiles + tile * kBlock;
    if (count == kBlock && y >= 0 && x >= 0 && y + kPoints <= c.height && x + kPoints <= c.width) {
      const float* from = call_.input + ((at.image * c.height + y) * c.width + x) * channels_ + channel;
      // What follows: the pixels' next channels, or the next tile's first.
      const std::int64_t ahead = channel + kBlock < channels_ ? kBlock : kOutputs * channels_ - channel;
      transform_block(from, c.width * channels_, channels_, ahead, to);
      return;
    }
    float padded[kPoints * kPoints * kBlock];
    for (std::int64_t i = 0; i < kPoints; ++i) {
      for (std::int64_t j = 0; j < kPoints; ++j) {
        const bool inside = y + i >= 0 && y + i < c.height && x + j >= 0 && x + j < c.width;
        const std::int64_t from = inside ? ((at.image * c.height + y + i) * c.width + x + j) * channels_ + channel : 0;
        store_block(padded + (i * kPoints + j) * kBlock, load_block(call_.input + from, inside ? count : 0));
      }
    }
    transform_block(padded, kPoints * kBlock, kBlock, 0, to);
  }

  // Fetches what lies `ahead` of the values, too: machines do not foresee pixels that lie apart.
  void transform_block(const float* from, std::int64_t row_step, std::int64_t pixel_step, std::int64_t ahead,
                       float* to) const {
    const std::int64_t at_step = at_step_;
    for (int part = 0; part < kParts; ++part, from += kLanes, to += kLanes) {
      Vector half[kPoints][kPoints];
      for (int x = 0; x < kPoints; ++x) {
        Vector column[kPoints], at[kPoints];
#pragma GCC unroll 8
        for (int y = 0; y < kPoints; ++y) {
          const float* const place = from + y * row_step + x * pixel_step;
          column[y] = load(place);
          if (part == 0) __builtin_prefetch(place + ahead);
        }
        transform_input<pairs>(column, at);
#pragma GCC unroll 8
        for (int y = 0; y < kPoints; ++y) half[y][x] = at[y];
      }
      for (int y = 0; y < kPoints; ++y) {
        Vector at[kPoints];
        transform_input<pairs>(half[y], at);
#pragma GCC unroll 8
        for (int x = 0; x < kPoints; ++x) store(to + (y * kPoints + x) * at_step, at[x]);
      }
    }
  }

  // sums: [n * n, tiles, width].
  void multiply_panel(std::int64_t filter, std::int64_t width) const {
    for (int point = 0; point < kPoints * kPoints; ++point) {
      const float* right = call_.packed + (filter * kPoints * kPoints + point * width) * channels_;
      const bool last = point == kPoints * kPoints - 1 && filter + width >= task_.end_filter;
      multiply({at_ + point * at_step_, kBlock, task_.tiles * kBlock, task_.tiles, channels_, kBlock, right, width,
                sums_ + point * sums_step_, false, last ? nullptr : right + width * channels_});
    }
  }

  void store_filters(std::int64_t filter, std::int64_t within, std::int64_t width) const {
    Place at = first_place();
    for (std::int64_t tile = 0; tile < task_.tiles; ++tile, advance(at)) {
      store_tile(sums_ + tile * width + within, at, filter + within);
    }
  }

  void store_tile(const float* sums, const Place& at, std::int64_t filter) const {
    const Convolution& c = call_.convolution;
    Vector half[kParts][kOutputs][kPoints];
    for (int part = 0; part < kParts; ++part) {
      for (int x = 0; x < kPoints; ++x) {
        Vector column[kPoints], out[kOutputs];
#pragma GCC unroll 8
        for (int y = 0; y < kPoints; ++y) column[y] = load(sums + (y * kPoints + x) * sums_step_ + part * kLanes);
        transform_result<pairs>(column, out);
#pragma GCC unroll 8
        for (int y = 0; y < kOutputs; ++y) half[part][y][x] = out[y];
      }
    }
    const std::int64_t rows = clamp(c.out_height - at.y, 0, kOutputs), columns = clamp(c.out_width - at.x, 0, kOutputs);
    for (std::int64_t y = 0; y < rows; ++y) {
      Block row[kOutputs];
      for (int part = 0; part < kParts; ++part) {
        Vector out[kOutputs];
        transform_result<pairs>(half[part][y], out);
#pragma GCC unroll 8
        for (int x = 0; x < kOutputs; ++x) row[x].part[part] = out[x];
      }
      const std::int64_t pixel = (at.image * c.out_height + at.y + y) * c.out_width + at.x;
      for (std::int64_t x = 0; x < columns; ++x) {
        apply_and_store_block(row[x], call_.epilogue, pixel + x, filter, c.filters, call_.result, call_.stream);
      }
    }
  }

  const Call& call_;
  const WinogradTask& task_;
  std::int64_t channels_, filters_;
  float* at_;
  std::int64_t at_step_;
  float* sums_;
  std::int64_t sums_step_;
};

}  // namespace

// How many tiles to transform at once. The more channels, the further away the weights are read from, and the more tiles
// they have to serve; wider vectors want them sooner. Fewer tiles' values stay in nearer caches.
std::int64_t winograd_tiles(std::int64_t channels) {
  return 14 * clamp(channels / 80, 2, kLanes == 16 ? 6 : 3);
}

void winograd(const Call& call, const WinogradTask& task, float* scratch) {
  switch (task.outputs) {
    case 2: Winograd<1>(call, task, scratch).run(); break;
    case 4: Winograd<2>(call, task, scratch).run(); break;
    default: Winograd<3>(call, task, scratch).run();
  }
  if (call.stream) stores_done();
}

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
