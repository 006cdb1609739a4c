// Inner loops between NCHW and NHWC: 4 bytes read and 4 written per value.
#include "../layers.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

constexpr std::int64_t kTile = 64;  // pixels whose values stay in the first-level cache while the channels pass

// Calls work(channel, scale, shift, first pixel, last pixel) for every tile.
template <typename Work>
void for_tiles(std::int64_t pixels, const Planes& shape, const Work& work) {
  for (std::int64_t begin = 0; begin < pixels; begin += kTile) {
    const std::int64_t end = begin + kTile < pixels ? begin + kTile : pixels;
    for (std::int64_t c = 0; c < shape.channels; ++c) {
      work(c, shape.scale == nullptr ? 1.0f : shape.scale[c], shape.shift == nullptr ? 0.0f : shape.shift[c], begin,
           end);
    }
  }
}

void interleave(const float* __restrict planes, float* __restrict result, std::int64_t pixels, const Planes& shape) {
  for_tiles(pixels, shape, [=](std::int64_t c, float scale, float shift, std::int64_t begin, std::int64_t end) {
    const float* __restrict plane = planes + c * shape.plane;
    float* __restrict to = result + c;
    const std::int64_t channels = shape.channels;
    for (std::int64_t p = begin; p < end; ++p) to[p * channels] = scale * plane[p] + shift;
  });
}

void separate(const float* __restrict input, float* __restrict planes, std::int64_t pixels, const Planes& shape) {
  for_tiles(pixels, shape, [=](std::int64_t c, float scale, float shift, std::int64_t begin, std::int64_t end) {
    const float* __restrict from = input + c;
    float* __restrict plane = planes + c * shape.plane;
    const std::int64_t channels = shape.channels;
    for (std::int64_t p = begin; p < end; ++p) plane[p] = scale * from[p * channels] + shift;
  });
}

}  // namespace

const MemoryFormatKernels memory_format = {interleave, separate};

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
