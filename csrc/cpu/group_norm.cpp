// Inner loops of group normalisation, forward and gradient. Forward: 8 bytes read (4 for the statistics, 4 for the
// result) and 4 written per value; gradient: 16 read and 4 written.
#include "layers.h"
#include "sigmoid.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

template <Activation activation>
SHADE_FAST_LANES Vector activated(Vector y) {
  if constexpr (activation == Activation::relu) return y < 0.0f ? Vector{} : y;
  if constexpr (activation == Activation::silu) return silu_of(y);
  return y;
}

// The gradient before the activation.
template <Activation activation>
SHADE_FAST_LANES Vector deactivated(Vector gradient, Vector y) {
  if constexpr (activation == Activation::relu) return y > 0.0f ? gradient : Vector{};
  if constexpr (activation == Activation::silu) return gradient * silu_slope(y);
  return gradient;
}

template <Activation activation>
struct Constant {
  static constexpr Activation value = activation;
};

// Calls work with the activation as a constant.
template <typename Work>
SHADE_FAST_LANES void with(Activation activation, const Work& work) {
  switch (activation) {
    case Activation::none: return work(Constant<Activation::none>{});
    case Activation::relu: return work(Constant<Activation::relu>{});
    case Activation::silu: return work(Constant<Activation::silu>{});
  }
}

constexpr std::int64_t kRun = 8;  // pixels whose sums stay in registers

}  // namespace

// sums: [2, width] of the values and of their squares. In double, a mean a million times the deviation does no harm.
void sum_moments(const float* input, std::int64_t pixels, std::int64_t channels, std::int64_t width,
                 double* __restrict sums) {
  double* __restrict squares = sums + width;
  for (std::int64_t c = 0; c < 2 * width; ++c) sums[c] = 0.0;
  std::int64_t pixel = 0;
  for (; pixel + 4 <= pixels; pixel += 4) {
    const float* __restrict from = input + pixel * channels;
    for (std::int64_t c = 0; c < channels; ++c) {
      const double v0 = from[c], v1 = from[c + channels], v2 = from[c + 2 * channels], v3 = from[c + 3 * channels];
      sums[c] += (v0 + v1) + (v2 + v3);
      squares[c] += (v0 * v0 + v1 * v1) + (v2 * v2 + v3 * v3);
    }
  }
  for (; pixel < pixels; ++pixel) {
    const float* __restrict from = input + pixel * channels;
    for (std::int64_t c = 0; c < channels; ++c) {
      const double value = from[c];
      sums[c] += value;
      squares[c] += value * value;
    }
  }
}

void normalize(const float* input, float* result, std::int64_t pixels, std::int64_t channels,
               const Normalization& norm, Activation activation, bool stream) {
  with(activation, [&](auto constant) {
    map_pixels(stream, pixels, channels, result, Finish{},
               [&](const auto& lanes, std::int64_t place, std::int64_t channel) {
                 const Vector centred = lanes.load(input + place) - lanes.load(norm.mean + channel);
                 return activated<decltype(constant)::value>(centred * lanes.load(norm.scale + channel) +
                                              lanes.load(norm.beta + channel));
               });
  });
}

// sums: [2, width] of dy and of dy * xhat, width being channels rounded up to whole words.
void sum_norm_gradient(const float* gradient, const float* input, std::int64_t pixels, std::int64_t channels,
                       const Normalization& norm, Activation activation, std::int64_t width, double* sums) {
  for (std::int64_t c = 0; c < 2 * width; ++c) sums[c] = 0.0;
  with(activation, [&](auto constant) {
    for (std::int64_t first = 0; first < pixels; first += kRun) {
      const std::int64_t last = first + kRun < pixels ? first + kRun : pixels;
      for_channels<Whole>(channels, [&](const auto& lanes, std::int64_t channel) {
        const Vector mean = lanes.load(norm.mean + channel), inverse = lanes.load(norm.inverse + channel);
        const Vector gamma = lanes.load(norm.gamma + channel), beta = lanes.load(norm.beta + channel);
        Vector plain{}, weighted{};
        for (std::int64_t pixel = first; pixel < last; ++pixel) {
          const std::int64_t place = pixel * channels + channel;
          const Vector xhat = (lanes.load(input + place) - mean) * inverse;
          const Vector dy = deactivated<decltype(constant)::value>(lanes.load(gradient + place), gamma * xhat + beta);
          plain += dy;
          weighted += dy * xhat;
        }
        add_to(sums + channel, plain);
        add_to(sums + width + channel, weighted);
      });
    }
  });
}

void norm_gradient(const float* gradient, const float* input, float* result, std::int64_t pixels,
                   std::int64_t channels, const Normalization& norm, Activation activation, const Finish& finish,
                   bool stream) {
  with(activation, [&](auto constant) {
    map_pixels(stream, pixels, channels, result, finish,
               [&](const auto& lanes, std::int64_t place, std::int64_t channel) {
                 const Vector centred = lanes.load(input + place) - lanes.load(norm.mean + channel);
                 const Vector xhat = centred * lanes.load(norm.inverse + channel);
                 const Vector y = xhat * lanes.load(norm.gamma + channel) + lanes.load(norm.beta + channel);
                 const Vector dy = deactivated<decltype(constant)::value>(lanes.load(gradient + place), y);
                 const Vector common = lanes.load(norm.offset + channel) + xhat * lanes.load(norm.slope + channel);
                 return dy * lanes.load(norm.scale + channel) - common;
               });
  });
}

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
