// Frozen weights in the order in which the kernels read them; runs once for each layer.
#pragma once

#include "convolution.h"

namespace shade_fast::cpu {

// The phases of a convolution: 1, or up * up of them.
std::int64_t phases(const Convolution& convolution);
Phase phase(const Convolution& convolution, std::int64_t index);

// packed: [filters / panel, taps_y, taps_x, channels, panel] for each phase.
void pack_direct(const Convolution& convolution, std::int64_t panel, const float* weights, float* packed);

}  // namespace shade_fast::cpu
