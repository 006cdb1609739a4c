// Inner loops of SiLU: 4 bytes read and 4 written per value; its gradient: 4 more read.
#include "../layers.h"
#include "../vector/epilogue.h"
#include "../vector/sigmoid.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

void forward(const float* a, float* result, std::int64_t pixels, std::int64_t channels, bool stream) {
  map_pixels(stream, 1, pixels * channels, result, Epilogue{},
             [&](const auto& lanes, std::int64_t place, std::int64_t) { return silu_of(lanes.load_once(a + place)); });
}

void input_gradient(const float* gradient, const float* a, float* result, std::int64_t pixels, std::int64_t channels,
                    const Epilogue& epilogue, bool stream) {
  flatten(pixels, channels, epilogue);
  map_pixels(stream, pixels, channels, result, epilogue, [&](const auto& lanes, std::int64_t place, std::int64_t) {
    return lanes.load_once(gradient + place) * silu_slope(lanes.load_once(a + place));
  });
}

}  // namespace

const SiluKernels silu = {forward, input_gradient};

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
