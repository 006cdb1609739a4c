// Frozen weights in the order in which the kernels read them; runs once for each layer.
#pragma once

#include "convolution.h"

namespace shade_fast::cpu {

// Floats that the packed weights take.
std::int64_t packed_size(Algorithm algorithm, const Convolution& convolution);

// The phases of a convolution, for direct, narrow and tiles: 1, or up * up of them.
std::int64_t phases(const Convolution& convolution);
Phase phase(Algorithm algorithm, const Convolution& convolution, std::int64_t index);

// packed: [filters / panel, taps_y, taps_x, channels, panel] for each phase.
void pack_direct(const Convolution& convolution, std::int64_t panel, const float* weights, float* packed);

// packed: [taps_y, taps_x * channels / 16, filters, 16] for each phase, 0 past the last channel of the last tap.
void pack_narrow(const Convolution& convolution, const float* weights, float* packed);

// packed: [filters / panel, n * n points, channels, panel], n = outputs + 2.
void pack_winograd(const Convolution& convolution, std::int64_t outputs, std::int64_t panel, const float* weights,
                   float* packed);

// packed, in bfloat16: [filters / 32, channels / 32, taps_y, taps_x, smaller and larger parts, filters / 16, tile] for each
// phase, 0 past the last channel and filter; a tile: [16 pairs of channels, 16 filters, 2].
void pack_tiles(const Convolution& convolution, const float* weights, float* packed);

}  // namespace shade_fast::cpu
