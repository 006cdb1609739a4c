// How the layers of a frozen network cut their images into runs of pixels, and hand the runs to threads.
#pragma once

#include <cstdint>

#include "../shade_fast.h"
#include "threads.h"

namespace shade_fast::cpu {

// 64 KiB of float32. Sums run over blocks, so their size depends on the number of channels alone.
constexpr std::int64_t kBlockValues = 16384;
// With fewer values for each, waking a thread takes longer than the work it takes over.
constexpr std::int64_t kThreadValues = 65536;
// Results of 16 MiB and more are not in the caches when the next layer reads them; they need not be read to be written.
constexpr std::int64_t kStreamValues = 4194304;

inline bool is_sound(const Extent& extent) { return extent.images >= 0 && extent.pixels >= 0 && extent.channels >= 1; }

inline std::int64_t values_per_image(const Extent& extent) { return extent.pixels * extent.channels; }

inline bool streams(const float* result, const Extent& extent, const Finish& finish) {
  return extent.images * values_per_image(extent) >= kStreamValues && extent.channels % 16 == 0 &&
         reinterpret_cast<std::uintptr_t>(result) % 64 == 0 && finish.residual != result;
}

// The parts of `finish` from one pixel on.
inline Finish from_pixel(const Finish& finish, std::int64_t pixel, std::int64_t channels) {
  const auto moved = [](auto* part, std::int64_t by) { return part == nullptr ? nullptr : part + by; };
  const std::int64_t words = (channels + 15) / 16;
  return {finish.bias, moved(finish.residual, pixel * channels), moved(finish.positive, pixel * words), finish.relu,
          moved(finish.gate, pixel * words)};
}

struct Block {
  std::int64_t index;   // among all blocks
  std::int64_t image;
  std::int64_t pixel;   // the first one, counted over all images
  std::int64_t pixels;
};

// Every image has blocks of its own, so that nothing depends on its neighbours.
struct Blocks {
  Extent extent;
  std::int64_t block_pixels = kBlockValues > extent.channels ? kBlockValues / extent.channels : 1;
  std::int64_t per_image = (extent.pixels + block_pixels - 1) / block_pixels;

  std::int64_t count() const { return extent.images * per_image; }

  Block operator[](std::int64_t index) const {
    const std::int64_t image = index / per_image, begin = index % per_image * block_pixels;
    const std::int64_t left = extent.pixels - begin;
    return {index, image, image * extent.pixels + begin, left < block_pixels ? left : block_pixels};
  }

  std::int64_t per_thread() const { return kThreadValues / (block_pixels * extent.channels) + 1; }
};

template <typename Work>
void for_blocks(const Blocks& blocks, int threads, const Work& work) {
  parallel_for(blocks.count(), blocks.per_thread(), threads, [&](std::int64_t index) { work(blocks[index]); });
}

// Scratch memory is counted in floats; doubles are kept in it from its first aligned place on.
constexpr std::int64_t kDoubleFloats = 2;

inline double* doubles_in(float* scratch) {
  const auto address = reinterpret_cast<std::uintptr_t>(scratch);
  return reinterpret_cast<double*>((address + sizeof(double) - 1) / sizeof(double) * sizeof(double));
}

inline std::int64_t floats_for_doubles(std::int64_t count) { return kDoubleFloats * (count + 1); }

}  // namespace shade_fast::cpu
