// Inner loop of an epilogue by itself: 4 bytes read and 4 written per value; a residual: 4 more read.
#include "../layers.h"
#include "../vector/epilogue.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

void apply(const float* a, float* result, std::int64_t pixels, std::int64_t channels, const Epilogue& epilogue,
           bool stream) {
  flatten(pixels, channels, epilogue);
  map_pixels(stream, pixels, channels, result, epilogue,
             [&](const auto& lanes, std::int64_t place, std::int64_t) { return lanes.load_once(a + place); });
}

}  // namespace

const EpilogueKernels epilogue = {apply};

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
