// The inner loops of a frozen network's layers, one copy for each instruction set. They work on a run of pixels of one
// image; every pointer, those of `finish` too, is that of the run's first pixel. `stream`: results go past the caches;
// then they are aligned to 64 bytes, and channels is a multiple of 16.
#pragma once

#include <cstdint>

#include "../shade_fast.h"

namespace shade_fast::cpu {

// Pixels of a side of a window that is pooled or blurred.
constexpr std::int64_t kLargestKernel = 15;

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

// Which channels' values a plane's pixels have: those of an image [channels, plane].
struct Planes {
  std::int64_t plane;
  std::int64_t channels;
  const float* scale;
  const float* shift;
};

#define SHADE_FAST_DECLARE_LAYERS(isa)                                                                              \
  namespace isa {                                                                                                   \
  void pointwise(const float* a, float* result, std::int64_t pixels, std::int64_t channels, const Finish& finish,   \
                 bool stream);                                                                                      \
  void silu(const float* a, float* result, std::int64_t pixels, std::int64_t channels, bool stream);                \
  void silu_gradient(const float* gradient, const float* a, float* result, std::int64_t pixels,                     \
                     std::int64_t channels, const Finish& finish, bool stream);                                     \
  void sum_moments(const float* input, std::int64_t pixels, std::int64_t channels, std::int64_t width,              \
                   double* sums);                                                                                   \
  void normalize(const float* input, float* result, std::int64_t pixels, std::int64_t channels,                     \
                 const Normalization& norm, Activation activation, bool stream);                                    \
  void sum_norm_gradient(const float* gradient, const float* input, std::int64_t pixels, std::int64_t channels,     \
                         const Normalization& norm, Activation activation, std::int64_t width, double* sums);       \
  void norm_gradient(const float* gradient, const float* input, float* result, std::int64_t pixels,                 \
                     std::int64_t channels, const Normalization& norm, Activation activation,                       \
                     const Finish& finish, bool stream);                                                            \
  void max_pool_row(const float* image, float* result, std::uint8_t* index, const Window& window, std::int64_t y,   \
                    bool stream);                                                                                   \
  void max_pool_gradient_row(const float* gradient, const std::uint8_t* index, float* result,                       \
                             const Window& window, const Finish& finish, std::int64_t y, bool stream);              \
  void blur_row(const float* image, const float* taps, float* result, const Window& window, std::int64_t y);        \
  void blur_gradient_row(const float* gradient, const float* taps, float* result, const Window& window,             \
                         const Finish& finish, std::int64_t y, bool stream);                                        \
  void unit_length(const float* activations, float* unit, std::int64_t pixels, std::int64_t channels, bool stream); \
  double lpips_distance(const float* activations, const float* clean, const float* head, std::int64_t pixels,       \
                        std::int64_t channels);                                                                     \
  void lpips_gradient(const float* activations, const float* clean, const float* head, float factor, float* result, \
                      std::int64_t pixels, std::int64_t channels, const Finish& finish, bool stream);               \
  void interleave(const float* planes, float* result, std::int64_t pixels, const Planes& shape);                    \
  void separate(const float* input, float* planes, std::int64_t pixels, const Planes& shape);                       \
  }

SHADE_FAST_DECLARE_LAYERS(avx512)
SHADE_FAST_DECLARE_LAYERS(avx2)
SHADE_FAST_DECLARE_LAYERS(portable)

#undef SHADE_FAST_DECLARE_LAYERS

}  // namespace shade_fast::cpu
