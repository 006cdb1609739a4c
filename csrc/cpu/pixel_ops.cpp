// The ops on pixels: cut images into blocks and hand the blocks to threads.
#include <new>
#include <vector>

#include "../shade_fast.h"
#include "isa.h"
#include "kernels.h"
#include "threads.h"

namespace shade_fast::cpu {
namespace {

struct Kernels {
  decltype(&portable::sum_absolute) sum_absolute;
  decltype(&portable::update) update;
  decltype(&portable::quantize) quantize;
  decltype(&portable::blend_rows) blend_rows;
  decltype(&portable::blend_columns) blend_columns;
  decltype(&portable::jpeg_blocks) jpeg_blocks;
  decltype(&portable::jpeg_show) jpeg_show;
  decltype(&portable::jpeg_gradient_planes) jpeg_gradient_planes;
  decltype(&portable::jpeg_gradient_chroma) jpeg_gradient_chroma;
  decltype(&portable::jpeg_gradient_show) jpeg_gradient_show;
};

#define SHADE_FAST_KERNELS(isa)                                                                                      \
  {isa::sum_absolute,         isa::update,    isa::quantize,  isa::blend_rows,           isa::blend_columns,          \
   isa::jpeg_blocks,          isa::jpeg_show, isa::jpeg_gradient_planes, isa::jpeg_gradient_chroma, isa::jpeg_gradient_show}

const Kernels kKernels[kWidths] = {
#if defined(SHADE_FAST_X86)
    SHADE_FAST_KERNELS(avx512),
    SHADE_FAST_KERNELS(avx2),
#endif
    SHADE_FAST_KERNELS(portable),
};

#undef SHADE_FAST_KERNELS

// 64 KiB of float32: a block's share of an image stays in the second-level cache. The size is part of the result of a
// sum, so it depends on nothing.
constexpr std::int64_t kBlock = 16384;
// A million values: with fewer for each, waking a thread takes longer than the work it takes over.
constexpr std::int64_t kBlocksPerThread = 64;
constexpr std::int64_t kValuesPerThread = kBlock * kBlocksPerThread;

bool is_sound(const Band& band) {
  return band.rows >= 1 && band.columns >= 1 && band.taps >= 1 && band.taps <= band.columns;
}

std::int64_t rows_per_thread(std::int64_t values_in_a_row) { return kValuesPerThread / values_in_a_row + 1; }

struct Blocks {
  std::int64_t elements;
  std::int64_t per_image = (elements + kBlock - 1) / kBlock;

  std::int64_t image(std::int64_t task) const { return task / per_image; }
  std::int64_t within_image(std::int64_t task) const { return task % per_image * kBlock; }
  std::int64_t begin(std::int64_t task) const { return image(task) * elements + within_image(task); }
  std::int64_t count(std::int64_t task) const {
    const std::int64_t left = elements - within_image(task);
    return left < kBlock ? left : kBlock;
  }
};

// JPEG's units: pixels of a side, and pixels for each thread.
constexpr std::int64_t kJpegUnit = 16, kJpegPixels = 16384;

std::int64_t padded(std::int64_t side) { return (side + kJpegUnit - 1) / kJpegUnit * kJpegUnit; }

bool is_sound(std::int64_t images, std::int64_t height, std::int64_t width, int threads) {
  return images >= 0 && height >= 1 && width >= 1 && threads >= 1;
}

}  // namespace

Status optimizer_update(float* delta, float* momentum, const float* gradient, const std::uint8_t* clean,
                        const std::uint8_t* share, const float* step, float* mean, std::int64_t images,
                        std::int64_t elements, float decay, float linf, int threads) try {
  if (images < 0 || elements < 0 || threads < 1 || !(linf >= 0.0f)) return Status::bad_argument;
  const Kernels& kernels = selected(kKernels);
  const Blocks blocks{elements};
  const std::int64_t tasks = images * blocks.per_image;

  std::vector<double> sums(static_cast<std::size_t>(tasks));
  std::vector<double> means(static_cast<std::size_t>(images));
  parallel_for(tasks, kBlocksPerThread, threads, [&](std::int64_t task) {
    sums[static_cast<std::size_t>(task)] = kernels.sum_absolute(gradient + blocks.begin(task), blocks.count(task));
  });
  for (std::int64_t image = 0; image < images; ++image) {
    double sum = 0.0;
    for (std::int64_t block = 0; block < blocks.per_image; ++block) {
      sum += sums[static_cast<std::size_t>(image * blocks.per_image + block)];
    }
    means[static_cast<std::size_t>(image)] = elements > 0 ? sum / static_cast<double>(elements) : 0.0;
    mean[image] = static_cast<float>(means[static_cast<std::size_t>(image)]);
  }

  parallel_for(tasks, kBlocksPerThread, threads, [&](std::int64_t task) {
    const std::int64_t image = blocks.image(task);
    const double image_mean = means[static_cast<std::size_t>(image)];
    if (!is_finite(image_mean)) return;
    const std::int64_t begin = blocks.begin(task);
    kernels.update(delta + begin, momentum + begin, gradient + begin, clean + begin,
                   share == nullptr ? nullptr : share + begin, blocks.count(task),
                   {inverse_of_mean(image_mean), decay, step[image], linf});
  });
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::out_of_memory;
}

Status quantize(const std::uint8_t* clean, const float* delta, const float* scale, std::uint8_t* result,
                std::int64_t images, std::int64_t elements, int levels, int threads) try {
  if (images < 0 || elements < 0 || threads < 1 || levels < 0 || levels > 255) return Status::bad_argument;
  const Kernels& kernels = selected(kKernels);
  const Blocks blocks{elements};
  parallel_for(images * blocks.per_image, kBlocksPerThread, threads, [&](std::int64_t task) {
    const std::int64_t begin = blocks.begin(task);
    kernels.quantize(clean + begin, delta + begin, result + begin, blocks.count(task),
                     255.0f * scale[blocks.image(task)], static_cast<float>(levels));
  });
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::out_of_memory;
}

std::int64_t resize_scratch(std::int64_t planes, const Band& vertical, const Band& horizontal) {
  if (planes < 0 || !is_sound(vertical) || !is_sound(horizontal)) return 0;
  const bool shrinks = vertical.rows <= vertical.columns;
  return planes * (shrinks ? vertical.rows * horizontal.columns : vertical.columns * horizontal.rows);
}

Status resize(const float* images, float* result, float* scratch, std::int64_t planes, Band vertical, Band horizontal,
              int threads) try {
  if (planes < 0 || threads < 1 || !is_sound(vertical) || !is_sound(horizontal)) return Status::bad_argument;
  const Kernels& kernels = selected(kKernels);
  const auto vertically = [&](const float* from, float* to, std::int64_t width) {
    parallel_for(planes * vertical.rows, rows_per_thread(width * vertical.taps), threads, [&](std::int64_t task) {
      const std::int64_t plane = task / vertical.rows, row = task % vertical.rows;
      kernels.blend_rows(from + (plane * vertical.columns + vertical.start[row]) * width,
                         vertical.weights + row * vertical.taps, vertical.taps, width, to + task * width);
    });
  };
  const auto horizontally = [&](const float* from, float* to, std::int64_t height) {
    const std::int64_t width = horizontal.rows;
    parallel_for(planes * height, rows_per_thread(width * horizontal.taps), threads, [&](std::int64_t task) {
      kernels.blend_columns(from + task * horizontal.columns, horizontal.start, horizontal.weights, horizontal.taps,
                            width, to + task * width);
    });
  };
  if (vertical.rows <= vertical.columns) {
    vertically(images, scratch, horizontal.columns);
    horizontally(scratch, result, vertical.rows);
  } else {
    horizontally(images, scratch, vertical.columns);
    vertically(scratch, result, horizontal.rows);
  }
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::out_of_memory;
}

std::int64_t jpeg_scratch(std::int64_t height, std::int64_t width) {
  return height >= 1 && width >= 1 ? padded(height) * padded(width) * 7 / 2 : 0;
}

Status jpeg(const float* images, const float* luminance, const float* chrominance, float* result, std::uint8_t* inside,
            float* scratch, std::int64_t count, std::int64_t height, std::int64_t width, int threads) try {
  if (!is_sound(count, height, width, threads)) return Status::bad_argument;
  const Kernels& kernels = selected(kKernels);
  const std::int64_t down = padded(height), across = padded(width), area = down * across;
  const JpegPlanes planes{scratch, scratch + area, scratch + area + area / 4, down, across};
  for (std::int64_t image = 0; image < count; ++image) {
    const std::int64_t offset = image * 3 * height * width;
    parallel_for(down / kJpegUnit, kJpegPixels / (kJpegUnit * across) + 1, threads, [&](std::int64_t band) {
      kernels.jpeg_blocks(images + offset, height, width, luminance, chrominance, planes, band);
    });
    parallel_for(height, kJpegPixels / across + 1, threads, [&](std::int64_t y) {
      kernels.jpeg_show(planes, height, width, result + offset, inside + offset, y);
    });
  }
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::out_of_memory;
}

Status jpeg_gradient(const float* gradient, const std::uint8_t* inside, float* result, float* scratch,
                     std::int64_t count, std::int64_t height, std::int64_t width, int threads) try {
  if (!is_sound(count, height, width, threads)) return Status::bad_argument;
  const Kernels& kernels = selected(kKernels);
  const std::int64_t down = padded(height), across = padded(width), area = down * across, half = across / 2;
  const JpegPlanes planes{scratch, scratch + area, scratch + 2 * area, down, across};
  float *const blue = scratch + 3 * area, *const red = blue + area / 4;
  for (std::int64_t image = 0; image < count; ++image) {
    const std::int64_t offset = image * 3 * height * width;
    parallel_for(down, kJpegPixels / across + 1, threads, [&](std::int64_t y) {
      kernels.jpeg_gradient_planes(gradient + offset, inside + offset, height, width, planes, y);
    });
    parallel_for(down / 2, kJpegPixels / across + 1, threads,
                 [&](std::int64_t row) { kernels.jpeg_gradient_chroma(planes, blue, red, row); });
    parallel_for(height, kJpegPixels / across + 1, threads, [&](std::int64_t y) {
      // Rows beyond the edge are the last row's.
      const std::int64_t end = y == height - 1 ? down : y + 1;
      for (std::int64_t row = y; row < end; ++row) {
        kernels.jpeg_gradient_show(planes.luma + row * across, blue + row / 2 * half, red + row / 2 * half, across,
                                   width, height * width, row > y, result + offset + y * width);
      }
    });
  }
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::out_of_memory;
}

}  // namespace shade_fast::cpu
