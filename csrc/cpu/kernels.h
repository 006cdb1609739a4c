// The inner loops, one copy for each instruction set: their sources are compiled several times, with SHADE_FAST_ISA
// naming the namespace. They use nothing of the C++ library, whose inline functions the linker would merge.
#pragma once

#include <cstdint>

#include "../pixel.h"

namespace shade_fast::cpu {

#define SHADE_FAST_DECLARE_KERNELS(isa)                                                                             \
  namespace isa {                                                                                                   \
  double sum_absolute(const float* values, std::int64_t count);                                                     \
  void update(float* delta, float* momentum, const float* gradient, const std::uint8_t* clean, std::int64_t count,  \
              UpdateFactors factors);                                                                               \
  void quantize(const std::uint8_t* clean, const float* delta, std::uint8_t* result, std::int64_t count,            \
                float gain, float levels);                                                                          \
  void blend_rows(const float* rows, const float* weights, std::int64_t taps, std::int64_t width, float* result);   \
  void blend_columns(const float* row, const std::int32_t* start, const float* weights, std::int64_t taps,          \
                     std::int64_t width, float* result);                                                            \
  }

SHADE_FAST_DECLARE_KERNELS(avx512)
SHADE_FAST_DECLARE_KERNELS(avx2)
SHADE_FAST_DECLARE_KERNELS(portable)

#undef SHADE_FAST_DECLARE_KERNELS

}  // namespace shade_fast::cpu
