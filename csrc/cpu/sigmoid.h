// x * sigmoid(x) and its derivative, to about 2 units in the last place, without a denormal number on the way.
#pragma once

#include "lanes.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

// exp(-86.5) is the last that is a normal number with room for a scaling by halves; beyond it sigmoid is 0 or 1.
constexpr float kFarthest = 86.5f;

// exp(-distance) for distance >= 0: n = round(-distance / ln 2), 2^n * (1 + r + r^2 p(r)), |r| <= ln(2) / 2; p is
// minimax, its relative error 2^-29. ln 2 is split in two, so that n times its first part is exact.
SHADE_FAST_LANES Vector exp_of_minus(Vector distance) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves no room for a fraction
  const Vector shifted = distance * -1.44269504f + kRound;
  const Vector n = shifted - kRound;
  const Vector r = (n * -0.693359375f - distance) + n * 2.12194440e-4f;
  Vector p = r * 1.3814540579915047e-3f + 8.36874544620514e-3f;
  p = p * r + 4.166838899254799e-2f;
  p = p * r + 0.1666652113199234f;
  p = p * r + 0.4999999403953552f;
  p = p * (r * r) + r + 1.0f;
  const Integers exponent = (float_to_bits(shifted) - float_to_bits(broadcast(kRound))) << 23;
  const Vector value = bits_to_float(float_to_bits(p) + exponent);
  return distance > kFarthest ? Vector{} : value;
}

struct Sigmoid {
  Vector bounded;     // x, no farther from 0 than where sigmoid is 0 or 1 in float32: infinities have their limits
  Vector value;       // sigmoid(x)
  Vector complement;  // 1 - sigmoid(x)
};

// A NaN stays a NaN in `bounded`.
SHADE_FAST_LANES Sigmoid sigmoid(Vector x) {
  constexpr float kBound = 100.0f;
  const Vector distance = x < 0.0f ? -x : x;
  const Vector power = exp_of_minus(distance);
  const Vector near = 1.0f / (1.0f + power);
  const Vector far = power * near;
  Vector bounded = x < -kBound ? broadcast(-kBound) : x;
  bounded = bounded > kBound ? broadcast(kBound) : bounded;
  return {bounded, x < 0.0f ? far : near, x < 0.0f ? near : far};
}

SHADE_FAST_LANES Vector silu_of(Vector x) {
  const Sigmoid parts = sigmoid(x);
  return (x < 0.0f ? parts.bounded : x) * parts.value;
}

SHADE_FAST_LANES Vector silu_slope(Vector x) {
  const Sigmoid parts = sigmoid(x);
  return parts.value + parts.value * (parts.bounded * parts.complement);
}

}  // namespace
}  // namespace shade_fast::cpu::SHADE_FAST_ISA
