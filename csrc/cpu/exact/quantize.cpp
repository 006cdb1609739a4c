// Inner loop of the rounding to uint8: 5 bytes read and 1 written per value.
#include "../pixels.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

void values(const std::uint8_t* __restrict clean, const float* __restrict delta, std::uint8_t* __restrict result,
            std::int64_t count, float gain, float levels) {
  for (std::int64_t i = 0; i < count; ++i) result[i] = quantize_pixel(clean[i], delta[i], gain, levels);
}

}  // namespace

const QuantizeKernels quantize = {values};

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
