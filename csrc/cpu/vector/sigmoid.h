// x * sigmoid(x) and its derivative, to about 2 units in the last place, without a denormal number on the way.
#pragma once

#include "lanes.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

// Beyond it sigmoid is 0 or 1; before it exp is a normal number, with room for a scaling by halves.
constexpr float kFarthest = 86.5f;

// exp(-x) for |x| <= kFarthest: n = round(-x / ln 2), 2^n * (1 + r + r^2 p(r)), |r| <= ln(2) / 2; p is minimax, its
// relative error 2^-28. ln 2 is split in two, so that n times its first part is exact.
SHADE_FAST_LANES Vector exp_of_minus(Vector x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves n in the last bits
  const Vector shifted = x * -1.44269504f + kRound;
  const Vector n = shifted - kRound;
  const Vector r = (n * -0.693359375f - x) + n * 2.12194440e-4f;
  Vector p = r * 1.3814540579915047e-3f + 8.36874544620514e-3f;
  p = p * r + 4.166838899254799e-2f;
  p = p * r + 0.1666652113199234f;
  p = p * r + 0.4999999403953552f;
  p = p * (r * r) + r + 1.0f;
  return bits_to_float(float_to_bits(p) + (float_to_bits(shifted) << 23));
}

// 0 at -infinity, infinity at infinity; a NaN stays a NaN.
SHADE_FAST_LANES Vector silu_of(Vector x) {
  const Vector bounded = at_least(-kFarthest, x);
  return bounded / (1.0f + exp_of_minus(at_most(kFarthest, bounded)));
}

SHADE_FAST_LANES Vector silu_slope(Vector x) {
  const Vector bounded = at_most(kFarthest, at_least(-kFarthest, x));
  const Vector power = exp_of_minus(bounded);
  const Vector sigmoid = 1.0f / (1.0f + power);
  return sigmoid + sigmoid * (bounded * (power * sigmoid));
}

}  // namespace
}  // namespace shade_fast::cpu::SHADE_FAST_ISA
