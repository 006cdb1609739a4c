// Layers of a frozen network that look at one pixel at a time: elementwise ones, LPIPS and memory formats.
#include "layers.h"

#include <new>

#include "../shade_fast.h"
#include "isa.h"
#include "runs.h"

namespace shade_fast::cpu {
namespace {

// Calls work(run, first value) for every run of the extent.
template <typename Work>
Status for_values(const Extent& extent, int threads, const Work& work) try {
  if (!is_sound(extent) || threads < 1) return Status::bad_argument;
  for_runs(Runs{extent}, threads, [&](const Run& run) { work(run, run.pixel * extent.channels); });
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::out_of_memory;
}

}  // namespace

Status epilogue(const float* a, float* result, Extent extent, const Epilogue& epilogue, int threads) {
  const EpilogueKernels& kernels = SHADE_FAST_SELECTED(epilogue);
  const bool stream = streams(result, extent, epilogue);
  return for_values(extent, threads, [&](const Run& run, std::int64_t first) {
    kernels.apply(a + first, result + first, run.pixels, extent.channels,
                  from_pixel(epilogue, run.pixel, extent.channels), stream);
  });
}

Status silu(const float* a, float* result, Extent extent, int threads) {
  const SiluKernels& kernels = SHADE_FAST_SELECTED(silu);
  const bool stream = streams(result, extent, {});
  return for_values(extent, threads, [&](const Run& run, std::int64_t first) {
    kernels.forward(a + first, result + first, run.pixels, extent.channels, stream);
  });
}

Status silu_gradient(const float* gradient, const float* a, float* result, Extent extent, const Epilogue& epilogue,
                     int threads) {
  const SiluKernels& kernels = SHADE_FAST_SELECTED(silu);
  const bool stream = streams(result, extent, epilogue);
  return for_values(extent, threads, [&](const Run& run, std::int64_t first) {
    kernels.gradient(gradient + first, a + first, result + first, run.pixels, extent.channels,
                     from_pixel(epilogue, run.pixel, extent.channels), stream);
  });
}

Status unit_length(const float* activations, float* unit, Extent extent, int threads) {
  const LpipsLayerKernels& kernels = SHADE_FAST_SELECTED(lpips_layer);
  const bool stream = streams(unit, extent, {});
  return for_values(extent, threads, [&](const Run& run, std::int64_t first) {
    kernels.unit_length(activations + first, unit + first, run.pixels, extent.channels, stream);
  });
}

std::int64_t lpips_layer_scratch(Extent extent) {
  return is_sound(extent) ? floats_for_doubles(Runs{extent}.count()) : 0;
}

Status lpips_layer(const float* activations, const float* clean, const float* head, float* distance, Extent extent,
                   float* scratch, int threads) {
  const LpipsLayerKernels& kernels = SHADE_FAST_SELECTED(lpips_layer);
  double* const sums = doubles_in(scratch);
  const Status status = for_values(extent, threads, [&](const Run& run, std::int64_t first) {
    sums[run.index] =
        kernels.distance(activations + first, clean + first, head, run.pixels, extent.channels);
  });
  if (status != Status::ok) return status;
  const std::int64_t per_image = Runs{extent}.per_image;
  for (std::int64_t image = 0; image < extent.images; ++image) {
    double sum = 0.0;
    for (std::int64_t run = 0; run < per_image; ++run) sum += sums[image * per_image + run];
    distance[image] = static_cast<float>(sum / static_cast<double>(extent.pixels));
  }
  return Status::ok;
}

Status lpips_layer_gradient(const float* activations, const float* clean, const float* head, const float* upstream,
                            float* result, Extent extent, const Epilogue& epilogue, int threads) {
  const LpipsLayerKernels& kernels = SHADE_FAST_SELECTED(lpips_layer);
  const bool stream = streams(result, extent, epilogue);
  return for_values(extent, threads, [&](const Run& run, std::int64_t first) {
    const float factor = 2.0f * upstream[run.image] / static_cast<float>(extent.pixels);
    kernels.gradient(activations + first, clean + first, head, factor, result + first, run.pixels,
                     extent.channels, from_pixel(epilogue, run.pixel, extent.channels), stream);
  });
}

Status to_channels_last(const float* input, const float* scale, const float* shift, float* result, Extent extent,
                        int threads) {
  const MemoryFormatKernels& kernels = SHADE_FAST_SELECTED(memory_format);
  const Planes planes{extent.pixels, extent.channels, scale, shift};
  return for_values(extent, threads, [&](const Run& run, std::int64_t first) {
    const std::int64_t image = run.image * values_per_image(extent);
    kernels.interleave(input + image + (run.pixel - run.image * extent.pixels), result + first, run.pixels,
                       planes);
  });
}

Status to_channels_first(const float* input, const float* scale, const float* shift, float* result, Extent extent,
                         int threads) {
  const MemoryFormatKernels& kernels = SHADE_FAST_SELECTED(memory_format);
  const Planes planes{extent.pixels, extent.channels, scale, shift};
  return for_values(extent, threads, [&](const Run& run, std::int64_t first) {
    const std::int64_t image = run.image * values_per_image(extent);
    kernels.separate(input + first, result + image + (run.pixel - run.image * extent.pixels), run.pixels,
                     planes);
  });
}

}  // namespace shade_fast::cpu
