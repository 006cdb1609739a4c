// The inner loops of the ops on pixels.
#pragma once

#include <cstdint>

#include "../pixel.h"
#include "kernels.h"

namespace shade_fast::cpu {

struct OptimizerUpdateKernels {
  double (*sum_absolute)(const float* values, std::int64_t count);
  void (*update)(float* delta, float* momentum, const float* gradient, const std::uint8_t* clean,
                 const std::uint8_t* share, std::int64_t count, UpdateFactors factors);
};

struct QuantizeKernels {
  void (*values)(const std::uint8_t* clean, const float* delta, std::uint8_t* result, std::int64_t count, float gain,
                 float levels);
};

// One output row of a banded product along columns, or along rows.
struct ResizeKernels {
  void (*blend_rows)(const float* rows, const float* weights, std::int64_t taps, std::int64_t width, float* result);
  void (*blend_columns)(const float* row, const std::int32_t* start, const float* weights, std::int64_t taps,
                        std::int64_t width, float* result);
};

// Luma and the two chroma planes of one image, padded to whole blocks of 16x16 pixels: height and width are luma's.
struct JpegPlanes {
  float *luma, *blue, *red;
  std::int64_t height, width;
};

struct JpegKernels {
  // The planes of band `band` of 16 rows of an image [3, height, width], as a file holds them; chroma planes are of half
  // the size.
  void (*blocks)(const float* image, std::int64_t height, std::int64_t width, const float* luminance,
                 const float* chrominance, const JpegPlanes& planes, std::int64_t band);
  // Row y of what they show, and whether each value of it is inside [0, 1].
  void (*show)(const JpegPlanes& planes, std::int64_t height, std::int64_t width, float* result, std::uint8_t* inside,
               std::int64_t y);
  // Row y of the gradient in all planes at full size.
  void (*gradient_planes)(const float* gradient, const std::uint8_t* inside, std::int64_t height, std::int64_t width,
                          const JpegPlanes& planes, std::int64_t y);
  // Row `row` of the gradient in the chroma planes at half size.
  void (*gradient_chroma)(const JpegPlanes& planes, float* blue, float* red, std::int64_t row);
  // From such rows a row of the gradient in the image, whose planes are `plane` floats apart; pixels from `width` to
  // `padded` are the last one's.
  void (*gradient_show)(const float* luma, const float* blue, const float* red, std::int64_t padded, std::int64_t width,
                        std::int64_t plane, bool accumulate, float* result);
};

SHADE_FAST_KERNELS(OptimizerUpdateKernels, optimizer_update)
SHADE_FAST_KERNELS(QuantizeKernels, quantize)
SHADE_FAST_KERNELS(ResizeKernels, resize)
SHADE_FAST_KERNELS(JpegKernels, jpeg)

}  // namespace shade_fast::cpu
