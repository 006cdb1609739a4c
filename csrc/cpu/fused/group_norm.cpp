// Inner loops of group normalisation, forward and gradient. Forward: 8 bytes read (4 for the statistics, 4 for the
// result) and 4 written per value; gradient: 16 read and 4 written.
#include "../layers.h"
#include "../vector/epilogue.h"
#include "../vector/sigmoid.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

template <Activation activation>
SHADE_FAST_LANES Vector activated(Vector y) {
  if constexpr (activation == Activation::relu) return at_least(0.0f, y);
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

constexpr int kTogether = 4;  // pixels whose sums stay in registers

// sums: [2, width] of the values and of their squares, width being channels rounded up to whole words. In double, a
// mean a million times the deviation does no harm.
void sum_moments(const float* input, std::int64_t pixels, std::int64_t channels, std::int64_t width, double* sums) {
  for (std::int64_t c = 0; c < 2 * width; ++c) sums[c] = 0.0;
  for_pixels<kTogether>(pixels, [&](auto count, std::int64_t pixel) {
    for_channels<Whole>(channels, [&](const auto& lanes, std::int64_t channel) {
      Doubles plain[2] = {}, squares[2] = {};
      for (int k = 0; k < decltype(count)::value; ++k) {
        const Halves parts = halves(lanes.load_once(input + (pixel + k) * channels + channel));
        for (int half = 0; half < 2; ++half) {
          const Doubles value = widened(parts.half[half]);
          plain[half] += value;
          squares[half] += value * value;
        }
      }
      for (int half = 0; half < 2; ++half) {
        add_to(sums + channel + half * (kLanes / 2), plain[half]);
        add_to(sums + width + channel + half * (kLanes / 2), squares[half]);
      }
    });
  });
}

void normalize(const float* input, float* result, std::int64_t pixels, std::int64_t channels,
               const Normalization& norm, Activation activation, bool stream) {
  with(activation, [&](auto constant) {
    map_pixels(stream, pixels, channels, result, Epilogue{},
               [&](const auto& lanes, std::int64_t place, std::int64_t channel) {
                 const Vector centred = lanes.load_once(input + place) - lanes.load(norm.mean + channel);
                 return activated<decltype(constant)::value>(centred * lanes.load(norm.scale + channel) +
                                              lanes.load(norm.beta + channel));
               });
  });
}

// sums: [2, width] of dy and of dy * xhat.
void sum_gradient(const float* gradient, const float* input, std::int64_t pixels, std::int64_t channels,
                  const Normalization& norm, Activation activation, std::int64_t width, double* sums) {
  for (std::int64_t c = 0; c < 2 * width; ++c) sums[c] = 0.0;
  with(activation, [&](auto constant) {
    for_pixels<kTogether>(pixels, [&](auto count, std::int64_t pixel) {
      for_channels<Whole>(channels, [&](const auto& lanes, std::int64_t channel) {
        const Vector mean = lanes.load(norm.mean + channel), inverse = lanes.load(norm.inverse + channel);
        const Vector gamma = lanes.load(norm.gamma + channel), beta = lanes.load(norm.beta + channel);
        Vector plain{}, weighted{};
        for (int k = 0; k < decltype(count)::value; ++k) {
          const std::int64_t place = (pixel + k) * channels + channel;
          const Vector xhat = (lanes.load_once(input + place) - mean) * inverse;
          const Vector dy =
              deactivated<decltype(constant)::value>(lanes.load_once(gradient + place), gamma * xhat + beta);
          plain += dy;
          weighted += dy * xhat;
        }
        add_to(sums + channel, plain);
        add_to(sums + width + channel, weighted);
      });
    });
  });
}

void input_gradient(const float* gradient, const float* input, float* result, std::int64_t pixels,
                    std::int64_t channels, const Normalization& norm, Activation activation, const Epilogue& epilogue,
                    bool stream) {
  with(activation, [&](auto constant) {
    map_pixels(stream, pixels, channels, result, epilogue,
               [&](const auto& lanes, std::int64_t place, std::int64_t channel) {
                 const Vector centred = lanes.load_once(input + place) - lanes.load(norm.mean + channel);
                 const Vector xhat = centred * lanes.load(norm.inverse + channel);
                 const Vector y = xhat * lanes.load(norm.gamma + channel) + lanes.load(norm.beta + channel);
                 const Vector dy = deactivated<decltype(constant)::value>(lanes.load_once(gradient + place), y);
                 const Vector common = lanes.load(norm.offset + channel) + xhat * lanes.load(norm.slope + channel);
                 return dy * lanes.load(norm.scale + channel) - common;
               });
  });
}

}  // namespace

const GroupNormKernels group_norm = {sum_moments, normalize, sum_gradient, input_gradient};

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
