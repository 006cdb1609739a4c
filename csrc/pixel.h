// The arithmetic of one pixel value, written once for the CPU and for CUDA. Both sides compile it without contraction
// to fused multiply-adds, so that every instruction set and every device gives the same bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "shade_fast.h"

#if defined(__CUDACC__)
#define SHADE_FAST_PIXEL static __host__ __device__ __forceinline__
#else
// static: each instruction set keeps its own copy, so that the linker cannot hand a wide one to a narrow machine.
#define SHADE_FAST_PIXEL static inline __attribute__((always_inline))
#endif

namespace shade_fast {

// What all pixels of one image share in an optimizer update.
struct UpdateFactors {
  float inverse_mean;
  float decay;
  float step;
  float linf;
};

constexpr float kLargestFloat = 3.40282347e+38f;

// A NaN stays a NaN.
SHADE_FAST_PIXEL float clamp(float value, float low, float high) {
  value = value < low ? low : value;
  return value > high ? high : value;
}

SHADE_FAST_PIXEL float sign(float value) {
  const float positive = value > 0.0f ? 1.0f : 0.0f;
  const float negative = value < 0.0f ? 1.0f : 0.0f;
  return positive - negative;
}

SHADE_FAST_PIXEL bool is_finite(double value) { return value - value == 0.0; }

// 0 where the mean is 0, is not finite, or is so small that its inverse is no float32.
SHADE_FAST_PIXEL float inverse_of_mean(double mean) {
  if (!(mean > 0.0) || !is_finite(mean)) return 0.0f;
  const double inverse = 1.0 / mean;
  return inverse <= static_cast<double>(kLargestFloat) ? static_cast<float>(inverse) : 0.0f;
}

// What a value's share of its image's step is counted in: this many are the whole of it.
constexpr std::uint8_t kWholeStep = 64;

SHADE_FAST_PIXEL void update_pixel(float& delta, float& momentum, float gradient, std::uint8_t clean,
                                   std::uint8_t share, const UpdateFactors& factors) {
  const float moved_momentum = factors.decay * momentum + gradient * factors.inverse_mean;
  const float step = factors.step * (static_cast<float>(share) * (1.0f / kWholeStep));
  const float bounded = clamp(delta - step * sign(moved_momentum), -factors.linf, factors.linf);
  const float shown = static_cast<float>(clean) / 255.0f;
  momentum = moved_momentum;
  delta = clamp(bounded, -shown, 1.0f - shown);
}

// Adding 1.5 * 2^23 leaves no room for a fraction: the sum is rounded half to even, without a rounding instruction.
constexpr float kRoundHalfEven = 12582912.0f;

// Of values below 2^22.
SHADE_FAST_PIXEL float round_half_even(float value) { return (value + kRoundHalfEven) - kRoundHalfEven; }

// gain = 255 * scale; levels in [0, 255] is a whole number, so clamping before the rounding is the same as after it.
SHADE_FAST_PIXEL std::uint8_t quantize_pixel(std::uint8_t clean, float delta, float gain, float levels) {
  const float change = gain * delta;
  const float bounded = clamp(change == change ? change : 0.0f, -levels, levels);
  const float rounded = round_half_even(bounded);
  return static_cast<std::uint8_t>(static_cast<std::int32_t>(clamp(static_cast<float>(clean) + rounded, 0.0f, 255.0f)));
}

// A level as a value in [0, 1], normalised.
SHADE_FAST_PIXEL float normalize_pixel(std::uint8_t level, float gain, float offset) {
  return gain * (static_cast<float>(level) / 255.0f) + offset;
}

// The upper half of a float32, rounded half to even; a NaN stays one.
SHADE_FAST_PIXEL std::uint16_t to_bfloat16(float value) {
  std::uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  const std::uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<std::uint16_t>(value == value ? rounded : 0x7fc0u);
}

SHADE_FAST_PIXEL float from_bfloat16(std::uint16_t half) {
  const std::uint32_t bits = static_cast<std::uint32_t>(half) << 16;
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// What is known once the distance at now.scale is. guess: the next scale is the one that a distance in proportion to it
// would want, instead of the middle; distances grow at least in proportion near their bound, so that it holds it closely.
SHADE_FAST_PIXEL Interval narrowed(const Interval& now, float distance, float bound, bool guess) {
  const bool held = distance <= bound;
  Interval next = {held ? now.scale : now.low, held ? now.high : now.scale, 0.0f};
  next.scale = guess && !held && is_finite(distance) ? now.scale * (bound / distance) : (next.low + next.high) * 0.5f;
  return next;
}

}  // namespace shade_fast
