#include "convolution.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {

const ConvolutionKernels convolution = {panel_width, direct, narrow, winograd_tiles, winograd};

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
