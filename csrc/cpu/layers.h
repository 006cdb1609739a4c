// The inner loops of a frozen network's layers. They work on a run of pixels of one image; every pointer, those of
// `epilogue` too, is that of the run's first pixel. `stream`: results go past the caches; then they are aligned to 64
// bytes, and channels is a multiple of 16.
#pragma once

#include <cstdint>

#include "../shade_fast.h"
#include "kernels.h"

namespace shade_fast::cpu {

struct EpilogueKernels {
  void (*apply)(const float* a, float* result, std::int64_t pixels, std::int64_t channels, const Epilogue& epilogue,
                bool stream);
};

struct SiluKernels {
  void (*forward)(const float* a, float* result, std::int64_t pixels, std::int64_t channels, bool stream);
  void (*gradient)(const float* gradient, const float* a, float* result, std::int64_t pixels, std::int64_t channels,
                   const Epilogue& epilogue, bool stream);
};

// Of one image, each [channels]: xhat = (x - mean) * inverse, y = gamma * xhat + beta, and the gradient
// dx = scale * dy - (offset + xhat * slope), with scale = gamma * inverse.
struct Normalization {
  const float* mean;
  const float* inverse;
  const float* gamma;
  const float* beta;
  const float* scale;
  const float* offset;
  const float* slope;
};

// sums: [2, width], width being channels rounded up to whole words: of the values and of their squares, of dy and of
// dy * xhat.
struct GroupNormKernels {
  void (*sum_moments)(const float* input, std::int64_t pixels, std::int64_t channels, std::int64_t width, double* sums);
  void (*normalize)(const float* input, float* result, std::int64_t pixels, std::int64_t channels,
                    const Normalization& norm, Activation activation, bool stream);
  void (*sum_gradient)(const float* gradient, const float* input, std::int64_t pixels, std::int64_t channels,
                       const Normalization& norm, Activation activation, std::int64_t width, double* sums);
  void (*gradient)(const float* gradient, const float* input, float* result, std::int64_t pixels, std::int64_t channels,
                   const Normalization& norm, Activation activation, const Epilogue& epilogue, bool stream);
};

// Pixels of a side of a window that is pooled or blurred.
constexpr std::int64_t kLargestKernel = 15;

// Row y of the result; the pointers are those of the image's first pixel, and of the result's row.
struct MaxPoolKernels {
  void (*row)(const float* image, float* result, std::uint8_t* index, const Window& window, std::int64_t y,
              bool stream);
  void (*gradient_row)(const float* gradient, const std::uint8_t* index, float* result, const Window& window,
                       const Epilogue& epilogue, std::int64_t y, bool stream);
};

struct BlurKernels {
  void (*row)(const float* image, const float* taps, float* result, const Window& window, std::int64_t y);
  void (*gradient_row)(const float* gradient, const float* taps, float* result, const Window& window,
                       const Epilogue& epilogue, std::int64_t y, bool stream);
};

struct LpipsLayerKernels {
  void (*unit_length)(const float* activations, float* unit, std::int64_t pixels, std::int64_t channels, bool stream);
  double (*distance)(const float* activations, const float* clean, const float* head, std::int64_t pixels,
                     std::int64_t channels);
  void (*gradient)(const float* activations, const float* clean, const float* head, float factor, float* result,
                   std::int64_t pixels, std::int64_t channels, const Epilogue& epilogue, bool stream);
};

// Which channels' values a plane's pixels have: those of an image [channels, plane].
struct Planes {
  std::int64_t plane;
  std::int64_t channels;
  const float* scale;
  const float* shift;
};

struct MemoryFormatKernels {
  void (*interleave)(const float* planes, float* result, std::int64_t pixels, const Planes& shape);
  void (*separate)(const float* input, float* planes, std::int64_t pixels, const Planes& shape);
};

SHADE_FAST_KERNELS(EpilogueKernels, epilogue)
SHADE_FAST_KERNELS(SiluKernels, silu)
SHADE_FAST_KERNELS(GroupNormKernels, group_norm)
SHADE_FAST_KERNELS(MaxPoolKernels, max_pool)
SHADE_FAST_KERNELS(BlurKernels, blur)
SHADE_FAST_KERNELS(LpipsLayerKernels, lpips_layer)
SHADE_FAST_KERNELS(MemoryFormatKernels, memory_format)

}  // namespace shade_fast::cpu
