// Inner loops of the elementwise layers: 4 bytes read and 4 written per value; a gradient or a residual: 4 more read.
#include "../layers.h"
#include "../vector/epilogue.h"
#include "../vector/sigmoid.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

// Where no part needs to know a value's channel, a run of pixels is one long pixel.
SHADE_FAST_LANES void flatten(std::int64_t& pixels, std::int64_t& channels, const Epilogue& epilogue) {
  const bool masked = epilogue.positive != nullptr || epilogue.gate != nullptr;
  if (epilogue.bias != nullptr || (masked && channels % kBlock != 0)) return;
  channels *= pixels;
  pixels = 1;
}

void forward(const float* a, float* result, std::int64_t pixels, std::int64_t channels, const Epilogue& epilogue,
             bool stream) {
  flatten(pixels, channels, epilogue);
  map_pixels(stream, pixels, channels, result, epilogue,
             [&](const auto& lanes, std::int64_t place, std::int64_t) { return lanes.load_once(a + place); });
}

void silu(const float* a, float* result, std::int64_t pixels, std::int64_t channels, bool stream) {
  map_pixels(stream, 1, pixels * channels, result, Epilogue{},
             [&](const auto& lanes, std::int64_t place, std::int64_t) { return silu_of(lanes.load_once(a + place)); });
}

void silu_gradient(const float* gradient, const float* a, float* result, std::int64_t pixels, std::int64_t channels,
                   const Epilogue& epilogue, bool stream) {
  flatten(pixels, channels, epilogue);
  map_pixels(stream, pixels, channels, result, epilogue, [&](const auto& lanes, std::int64_t place, std::int64_t) {
    return lanes.load_once(gradient + place) * silu_slope(lanes.load_once(a + place));
  });
}

}  // namespace

const PointwiseKernels pointwise = {forward, silu, silu_gradient};

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
