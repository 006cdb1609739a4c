// Inner loops of the optimizer update: 4 bytes read per value for the mean, then 13 read (14 with shares of the
// step) and 8 written.
#include "../pixels.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

// The lanes are part of the result: a fixed number of them gives every instruction set the same sum.
double sum_absolute(const float* __restrict values, std::int64_t count) {
  constexpr int kLanes = 16;
  double lanes[kLanes] = {};
  std::int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += __builtin_fabs(static_cast<double>(values[i + lane]));
  }
  for (int lane = 0; i < count; ++i, ++lane) lanes[lane] += __builtin_fabs(static_cast<double>(values[i]));
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int lane = 0; lane < width; ++lane) lanes[lane] += lanes[lane + width];
  }
  return lanes[0];
}

void update(float* __restrict delta, float* __restrict momentum, const float* __restrict gradient,
            const std::uint8_t* __restrict clean, const std::uint8_t* __restrict share, std::int64_t count,
            UpdateFactors factors) {
  if (share == nullptr) {
    for (std::int64_t i = 0; i < count; ++i) {
      update_pixel(delta[i], momentum[i], gradient[i], clean[i], kWholeStep, factors);
    }
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    update_pixel(delta[i], momentum[i], gradient[i], clean[i], share[i], factors);
  }
}

}  // namespace

const OptimizerUpdateKernels optimizer_update = {sum_absolute, update};

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
