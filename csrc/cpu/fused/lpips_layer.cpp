// Inner loops of an LPIPS layer: 8 bytes read per value, and 4 written by the gradient. A pixel passes twice (its
// gradient three times), but comes from memory once. Several pixels go together, so that their sums over the lanes
// overlap.
#include "../layers.h"
#include "../vector/epilogue.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

constexpr float kEpsilon = 1e-10f;
constexpr int kTogether = 4;

template <int count>
struct Scales {
  float length[count];
  float inverse[count];  // 1 / (length + epsilon), 0 where the length is 0
};

template <int count>
SHADE_FAST_LANES Scales<count> measure(const float* pixels, std::int64_t channels) {
  Vector squares[count] = {};
  for_channels<Whole>(channels, [&](const auto& lanes, std::int64_t channel) {
    for (int k = 0; k < count; ++k) {
      const Vector value = lanes.load_once(pixels + k * channels + channel);
      squares[k] += value * value;
    }
  });
  Scales<count> scales;
  for (int k = 0; k < count; ++k) {
    scales.length[k] = __builtin_sqrtf(sum(squares[k]));
    scales.inverse[k] = scales.length[k] == 0.0f ? 0.0f : 1.0f / (scales.length[k] + kEpsilon);
  }
  return scales;
}

void unit_length(const float* activations, float* unit, std::int64_t pixels, std::int64_t channels, bool stream) {
  with_stores(stream, [&](auto full) {
    for_pixels<kTogether>(pixels, [&](auto count, std::int64_t pixel) {
      constexpr int kCount = decltype(count)::value;
      const std::int64_t place = pixel * channels;
      const Scales<kCount> scales = measure<kCount>(activations + place, channels);
      for (int k = 0; k < kCount; ++k) {
        const std::int64_t begin = place + k * channels;
        for_channels<decltype(full)>(channels, [&](const auto& lanes, std::int64_t channel) {
          lanes.store(unit + begin + channel, lanes.load(activations + begin + channel) * scales.inverse[k]);
        });
      }
    });
  });
}

double distance(const float* activations, const float* clean, const float* head, std::int64_t pixels,
                std::int64_t channels) {
  double total = 0.0;
  for_pixels<kTogether>(pixels, [&](auto count, std::int64_t pixel) {
    constexpr int kCount = decltype(count)::value;
    const float* const a = activations + pixel * channels;
    const float* const c = clean + pixel * channels;
    const Scales<kCount> scales = measure<kCount>(a, channels);
    Vector sums[kCount] = {};
    for_channels<Whole>(channels, [&](const auto& lanes, std::int64_t channel) {
      const Vector weight = lanes.load(head + channel);
      for (int k = 0; k < kCount; ++k) {
        const std::int64_t place = k * channels + channel;
        const Vector difference = lanes.load(a + place) * scales.inverse[k] - lanes.load_once(c + place);
        sums[k] += weight * (difference * difference);
      }
    });
    for (int k = 0; k < kCount; ++k) total += static_cast<double>(sum(sums[k]));
  });
  return total;
}

// With d = head * (unit - clean): factor * (d * inverse - a * inverse^2 * sum(a * d) / length).
void gradient(const float* activations, const float* clean, const float* head, float factor, float* result,
              std::int64_t pixels, std::int64_t channels, const Epilogue& parts, bool stream) {
  const Epilogue epilogue = parts;
  with_stores(stream, [&](auto full) {
    for_pixels<kTogether>(pixels, [&](auto count, std::int64_t pixel) {
      constexpr int kCount = decltype(count)::value;
      const float* const a = activations + pixel * channels;
      const float* const c = clean + pixel * channels;
      const Scales<kCount> scales = measure<kCount>(a, channels);
      Vector dots[kCount] = {};
      for_channels<Whole>(channels, [&](const auto& lanes, std::int64_t channel) {
        const Vector weight = lanes.load(head + channel);
        for (int k = 0; k < kCount; ++k) {
          const std::int64_t place = k * channels + channel;
          const Vector value = lanes.load(a + place);
          dots[k] += value * (weight * (value * scales.inverse[k] - lanes.load_once(c + place)));
        }
      });
      float outer[kCount], inner[kCount];
      for (int k = 0; k < kCount; ++k) {
        outer[k] = factor * scales.inverse[k];
        const float share = sum(dots[k]) * scales.inverse[k] / scales.length[k];
        inner[k] = scales.length[k] == 0.0f ? 0.0f : outer[k] * share;
      }
      for (int k = 0; k < kCount; ++k) {
        for_channels<decltype(full)>(channels, [&](const auto& lanes, std::int64_t channel) {
          const Vector value = lanes.load(a + k * channels + channel);
          const Vector difference = value * scales.inverse[k] - lanes.load(c + k * channels + channel);
          const Vector made = lanes.load(head + channel) * difference * outer[k] - value * inner[k];
          apply_and_store(lanes, made, epilogue, pixel + k, channel, channels, result);
        });
      }
    });
  });
}

}  // namespace

const LpipsLayerKernels lpips_layer = {unit_length, distance, gradient};

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
