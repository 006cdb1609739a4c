// Inner loops between NCHW and NHWC: 4 bytes read and 4 written per value.
#include "layers.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {

void interleave(const float* planes, float* result, std::int64_t pixels, const Planes& shape) {
  for (std::int64_t c = 0; c < shape.channels; ++c) {
    const float scale = shape.scale == nullptr ? 1.0f : shape.scale[c];
    const float shift = shape.shift == nullptr ? 0.0f : shape.shift[c];
    const float* const plane = planes + c * shape.plane;
    for (std::int64_t p = 0; p < pixels; ++p) result[p * shape.channels + c] = scale * plane[p] + shift;
  }
}

void separate(const float* input, float* planes, std::int64_t pixels, const Planes& shape) {
  for (std::int64_t c = 0; c < shape.channels; ++c) {
    const float scale = shape.scale == nullptr ? 1.0f : shape.scale[c];
    const float shift = shape.shift == nullptr ? 0.0f : shape.shift[c];
    float* const plane = planes + c * shape.plane;
    for (std::int64_t p = 0; p < pixels; ++p) plane[p] = scale * input[p * shape.channels + c] + shift;
  }
}

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
