// The inner loops, one copy for each instruction set: their sources are compiled several times, with SHADE_FAST_ISA
// naming the namespace. They use nothing of the C++ library, whose inline functions the linker would merge.
#pragma once

#include <cstdint>

#include "../pixel.h"

namespace shade_fast::cpu {

// Luma and the two chroma planes of one image, padded to whole blocks of 16x16 pixels: height and width are luma's.
struct JpegPlanes {
  float *luma, *blue, *red;
  std::int64_t height, width;
};

// jpeg_blocks: the planes of band `band` of 16 rows of an image [3, height, width], as a file holds them; chroma planes
// are of half the size. jpeg_show: row y of what they show, and whether each value of it is inside [0, 1].
// jpeg_gradient_planes: row y of the gradient in all planes at full size. jpeg_gradient_chroma: row `row` of the chroma
// planes' at half size. jpeg_gradient_show: a row of the gradient in the image, whose planes are `plane` floats apart,
// from such rows; pixels from `width` to `padded` are the last one's.
#define SHADE_FAST_DECLARE_KERNELS(isa)                                                                             \
  namespace isa {                                                                                                   \
  double sum_absolute(const float* values, std::int64_t count);                                                     \
  void update(float* delta, float* momentum, const float* gradient, const std::uint8_t* clean,                      \
              const std::uint8_t* share, std::int64_t count, UpdateFactors factors);                                \
  void quantize(const std::uint8_t* clean, const float* delta, std::uint8_t* result, std::int64_t count,            \
                float gain, float levels);                                                                          \
  void blend_rows(const float* rows, const float* weights, std::int64_t taps, std::int64_t width, float* result);   \
  void blend_columns(const float* row, const std::int32_t* start, const float* weights, std::int64_t taps,          \
                     std::int64_t width, float* result);                                                            \
  void jpeg_blocks(const float* image, std::int64_t height, std::int64_t width, const float* luminance,             \
                   const float* chrominance, const JpegPlanes& planes, std::int64_t band);                          \
  void jpeg_show(const JpegPlanes& planes, std::int64_t height, std::int64_t width, float* result,                  \
                 std::uint8_t* inside, std::int64_t y);                                                             \
  void jpeg_gradient_planes(const float* gradient, const std::uint8_t* inside, std::int64_t height,                 \
                            std::int64_t width, const JpegPlanes& planes, std::int64_t y);                          \
  void jpeg_gradient_chroma(const JpegPlanes& planes, float* blue, float* red, std::int64_t row);                   \
  void jpeg_gradient_show(const float* luma, const float* blue, const float* red, std::int64_t padded,              \
                          std::int64_t width, std::int64_t plane, bool accumulate, float* result);                  \
  }

SHADE_FAST_DECLARE_KERNELS(avx512)
SHADE_FAST_DECLARE_KERNELS(avx2)
SHADE_FAST_DECLARE_KERNELS(portable)

#undef SHADE_FAST_DECLARE_KERNELS

}  // namespace shade_fast::cpu
