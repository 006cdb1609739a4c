// Layers of a frozen network that look at one pixel at a time: elementwise ones, LPIPS and memory formats.
#include "layers.h"

#include <new>

#include "../shade_fast.h"
#include "blocks.h"
#include "isa.h"

namespace shade_fast::cpu {
namespace {

struct Kernels {
  decltype(&portable::pointwise) pointwise;
  decltype(&portable::silu) silu;
  decltype(&portable::silu_gradient) silu_gradient;
  decltype(&portable::unit_length) unit_length;
  decltype(&portable::lpips_distance) lpips_distance;
  decltype(&portable::lpips_gradient) lpips_gradient;
  decltype(&portable::interleave) interleave;
  decltype(&portable::separate) separate;
};

const Kernels kKernels[kWidths] = {
#if defined(SHADE_FAST_X86)
    {avx512::pointwise, avx512::silu, avx512::silu_gradient, avx512::unit_length, avx512::lpips_distance,
     avx512::lpips_gradient, avx512::interleave, avx512::separate},
    {avx2::pointwise, avx2::silu, avx2::silu_gradient, avx2::unit_length, avx2::lpips_distance, avx2::lpips_gradient,
     avx2::interleave, avx2::separate},
#endif
    {portable::pointwise, portable::silu, portable::silu_gradient, portable::unit_length, portable::lpips_distance,
     portable::lpips_gradient, portable::interleave, portable::separate},
};

// Runs work(kernels, block, channels, first value) on every block of the extent.
template <typename Work>
Status run(const Extent& extent, int threads, const Work& work) try {
  if (!is_sound(extent) || threads < 1) return Status::bad_argument;
  const Kernels& kernels = selected(kKernels);
  for_blocks(Blocks{extent}, threads, [&](const Block& block) { work(kernels, block, block.pixel * extent.channels); });
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::out_of_memory;
}

}  // namespace

Status pointwise(const float* a, float* result, Extent extent, const Finish& finish, int threads) {
  const bool stream = streams(result, extent, finish);
  return run(extent, threads, [&](const Kernels& kernels, const Block& block, std::int64_t first) {
    kernels.pointwise(a + first, result + first, block.pixels, extent.channels,
                      from_pixel(finish, block.pixel, extent.channels), stream);
  });
}

Status silu(const float* a, float* result, Extent extent, int threads) {
  const bool stream = streams(result, extent, {});
  return run(extent, threads, [&](const Kernels& kernels, const Block& block, std::int64_t first) {
    kernels.silu(a + first, result + first, block.pixels, extent.channels, stream);
  });
}

Status silu_gradient(const float* gradient, const float* a, float* result, Extent extent, const Finish& finish,
                     int threads) {
  const bool stream = streams(result, extent, finish);
  return run(extent, threads, [&](const Kernels& kernels, const Block& block, std::int64_t first) {
    kernels.silu_gradient(gradient + first, a + first, result + first, block.pixels, extent.channels,
                          from_pixel(finish, block.pixel, extent.channels), stream);
  });
}

Status unit_length(const float* activations, float* unit, Extent extent, int threads) {
  const bool stream = streams(unit, extent, {});
  return run(extent, threads, [&](const Kernels& kernels, const Block& block, std::int64_t first) {
    kernels.unit_length(activations + first, unit + first, block.pixels, extent.channels, stream);
  });
}

std::int64_t lpips_layer_scratch(Extent extent) {
  return is_sound(extent) ? floats_for_doubles(Blocks{extent}.count()) : 0;
}

Status lpips_layer(const float* activations, const float* clean, const float* head, float* distance, Extent extent,
                   float* scratch, int threads) {
  double* const sums = doubles_in(scratch);
  const Status status = run(extent, threads, [&](const Kernels& kernels, const Block& block, std::int64_t first) {
    sums[block.index] =
        kernels.lpips_distance(activations + first, clean + first, head, block.pixels, extent.channels);
  });
  if (status != Status::ok) return status;
  const std::int64_t per_image = Blocks{extent}.per_image;
  for (std::int64_t image = 0; image < extent.images; ++image) {
    double sum = 0.0;
    for (std::int64_t block = 0; block < per_image; ++block) sum += sums[image * per_image + block];
    distance[image] = static_cast<float>(sum / static_cast<double>(extent.pixels));
  }
  return Status::ok;
}

Status lpips_layer_gradient(const float* activations, const float* clean, const float* head, const float* upstream,
                            float* result, Extent extent, const Finish& finish, int threads) {
  const bool stream = streams(result, extent, finish);
  return run(extent, threads, [&](const Kernels& kernels, const Block& block, std::int64_t first) {
    const float factor = 2.0f * upstream[block.image] / static_cast<float>(extent.pixels);
    kernels.lpips_gradient(activations + first, clean + first, head, factor, result + first, block.pixels,
                           extent.channels, from_pixel(finish, block.pixel, extent.channels), stream);
  });
}

Status to_channels_last(const float* input, const float* scale, const float* shift, float* result, Extent extent,
                        int threads) {
  const Planes planes{extent.pixels, extent.channels, scale, shift};
  return run(extent, threads, [&](const Kernels& kernels, const Block& block, std::int64_t first) {
    const std::int64_t image = block.image * values_per_image(extent);
    kernels.interleave(input + image + (block.pixel - block.image * extent.pixels), result + first, block.pixels,
                       planes);
  });
}

Status to_channels_first(const float* input, const float* scale, const float* shift, float* result, Extent extent,
                         int threads) {
  const Planes planes{extent.pixels, extent.channels, scale, shift};
  return run(extent, threads, [&](const Kernels& kernels, const Block& block, std::int64_t first) {
    const std::int64_t image = block.image * values_per_image(extent);
    kernels.separate(input + first, result + image + (block.pixel - block.image * extent.pixels), block.pixels,
                     planes);
  });
}

}  // namespace shade_fast::cpu
