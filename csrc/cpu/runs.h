// How images are cut into runs of pixels, and the runs handed to threads; and an epilogue's parts with them.
#pragma once

#include <cstdint>

#include "../shade_fast.h"
#include "threads.h"

namespace shade_fast::cpu {

// 64 KiB of float32: a run stays in the second-level cache. Sums go over runs, so that their size is part of a result: it
// depends on the number of channels alone.
constexpr std::int64_t kRunValues = 16384;
// With fewer values for each, waking a thread takes longer than the work it takes over.
constexpr std::int64_t kThreadValues = 65536;

inline bool is_sound(const Extent& extent) { return extent.images >= 0 && extent.pixels >= 0 && extent.channels >= 1; }

inline std::int64_t values_per_image(const Extent& extent) { return extent.pixels * extent.channels; }

// Results of 16 MiB and more are not in the caches when the next layer reads them; they need not be read to be written.
constexpr std::int64_t kStreamValues = 4194304;

inline bool streams(const float* result, const Extent& extent, const Epilogue& epilogue) {
  return extent.images * values_per_image(extent) >= kStreamValues && extent.channels % 16 == 0 &&
         reinterpret_cast<std::uintptr_t>(result) % 64 == 0 && epilogue.residual != result;
}

// The parts of an epilogue from one pixel on.
inline Epilogue from_pixel(const Epilogue& epilogue, std::int64_t pixel, std::int64_t channels) {
  const auto moved = [](auto* part, std::int64_t by) { return part == nullptr ? nullptr : part + by; };
  const std::int64_t words = (channels + 15) / 16;
  return {epilogue.bias, moved(epilogue.residual, pixel * channels), moved(epilogue.positive, pixel * words),
          epilogue.relu, moved(epilogue.gate, pixel * words)};
}

struct Run {
  std::int64_t index;   // among all runs
  std::int64_t image;
  std::int64_t pixel;   // the first one, counted over all images
  std::int64_t pixels;
};

// Every image has runs of its own, so that nothing depends on its neighbours.
struct Runs {
  Extent extent;
  std::int64_t run_pixels = kRunValues > extent.channels ? kRunValues / extent.channels : 1;
  std::int64_t per_image = (extent.pixels + run_pixels - 1) / run_pixels;

  std::int64_t count() const { return extent.images * per_image; }

  Run operator[](std::int64_t index) const {
    const std::int64_t image = index / per_image, begin = index % per_image * run_pixels;
    const std::int64_t left = extent.pixels - begin;
    return {index, image, image * extent.pixels + begin, left < run_pixels ? left : run_pixels};
  }

  // How many of them a thread has for `values` values.
  std::int64_t holding(std::int64_t values) const { return values / (run_pixels * extent.channels) + 1; }
};

// Calls work(run) for every run, on threads that have kThreadValues values each or more.
template <typename Work>
void for_runs(const Runs& runs, int threads, const Work& work) {
  parallel_for(runs.count(), runs.holding(kThreadValues), threads, [&](std::int64_t index) { work(runs[index]); });
}

// Scratch memory is counted in floats; doubles are kept in it from its first aligned place on.
constexpr std::int64_t kDoubleFloats = 2;

inline double* doubles_in(float* scratch) {
  const auto address = reinterpret_cast<std::uintptr_t>(scratch);
  return reinterpret_cast<double*>((address + sizeof(double) - 1) / sizeof(double) * sizeof(double));
}

inline std::int64_t floats_for_doubles(std::int64_t count) { return kDoubleFloats * (count + 1); }

}  // namespace shade_fast::cpu
