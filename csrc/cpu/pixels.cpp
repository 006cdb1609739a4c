// The ops on pixels: check the arguments, cut images into parts and hand the parts to threads.
#include <new>
#include <vector>

#include "../shade_fast.h"
#include "isa.h"
#include "pixels.h"
#include "runs.h"

namespace shade_fast::cpu {
namespace {

// With fewer values for each, waking a thread takes longer than the work it takes over.
constexpr std::int64_t kValuesPerThread = 1024 * 1024;

bool is_sound(const Band& band) {
  return band.rows >= 1 && band.columns >= 1 && band.taps >= 1 && band.taps <= band.columns;
}

std::int64_t rows_per_thread(std::int64_t values_in_a_row) { return kValuesPerThread / values_in_a_row + 1; }

// Whole images, whatever the order of their values.
Runs runs_of(std::int64_t images, std::int64_t elements) { return Runs{{images, elements, 1}}; }

template <typename Work>
void for_pixel_runs(const Runs& runs, int threads, const Work& work) {
  parallel_for(runs.count(), kValuesPerThread / kRunValues, threads, [&](std::int64_t index) { work(runs[index]); });
}

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
  const OptimizerUpdateKernels& kernels = SHADE_FAST_SELECTED(optimizer_update);
  const Runs runs = runs_of(images, elements);

  std::vector<double> sums(static_cast<std::size_t>(runs.count()));
  std::vector<double> means(static_cast<std::size_t>(images));
  for_pixel_runs(runs, threads, [&](const Run& run) {
    sums[static_cast<std::size_t>(run.index)] = kernels.sum_absolute(gradient + run.pixel, run.pixels);
  });
  for (std::int64_t image = 0; image < images; ++image) {
    double sum = 0.0;
    for (std::int64_t run = 0; run < runs.per_image; ++run) {
      sum += sums[static_cast<std::size_t>(image * runs.per_image + run)];
    }
    means[static_cast<std::size_t>(image)] = elements > 0 ? sum / static_cast<double>(elements) : 0.0;
    mean[image] = static_cast<float>(means[static_cast<std::size_t>(image)]);
  }

  for_pixel_runs(runs, threads, [&](const Run& run) {
    const double image_mean = means[static_cast<std::size_t>(run.image)];
    if (!is_finite(image_mean)) return;
    kernels.update(delta + run.pixel, momentum + run.pixel, gradient + run.pixel, clean + run.pixel,
                   share == nullptr ? nullptr : share + run.pixel, run.pixels,
                   {inverse_of_mean(image_mean), decay, step[run.image], linf});
  });
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::out_of_memory;
}

Status quantize(const std::uint8_t* clean, const float* delta, const float* scale, std::uint8_t* result,
                std::int64_t images, std::int64_t elements, int levels, int threads) try {
  if (images < 0 || elements < 0 || threads < 1 || levels < 0 || levels > 255) return Status::bad_argument;
  const QuantizeKernels& kernels = SHADE_FAST_SELECTED(quantize);
  for_pixel_runs(runs_of(images, elements), threads, [&](const Run& run) {
    kernels.values(clean + run.pixel, delta + run.pixel, result + run.pixel, run.pixels, 255.0f * scale[run.image],
                   static_cast<float>(levels));
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
  const ResizeKernels& kernels = SHADE_FAST_SELECTED(resize);
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
  const JpegKernels& kernels = SHADE_FAST_SELECTED(jpeg);
  const std::int64_t down = padded(height), across = padded(width), area = down * across;
  const JpegPlanes planes{scratch, scratch + area, scratch + area + area / 4, down, across};
  for (std::int64_t image = 0; image < count; ++image) {
    const std::int64_t offset = image * 3 * height * width;
    parallel_for(down / kJpegUnit, kJpegPixels / (kJpegUnit * across) + 1, threads, [&](std::int64_t band) {
      kernels.blocks(images + offset, height, width, luminance, chrominance, planes, band);
    });
    parallel_for(height, kJpegPixels / across + 1, threads, [&](std::int64_t y) {
      kernels.show(planes, height, width, result + offset, inside + offset, y);
    });
  }
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::out_of_memory;
}

Status jpeg_gradient(const float* gradient, const std::uint8_t* inside, float* result, float* scratch,
                     std::int64_t count, std::int64_t height, std::int64_t width, int threads) try {
  if (!is_sound(count, height, width, threads)) return Status::bad_argument;
  const JpegKernels& kernels = SHADE_FAST_SELECTED(jpeg);
  const std::int64_t down = padded(height), across = padded(width), area = down * across, half = across / 2;
  const JpegPlanes planes{scratch, scratch + area, scratch + 2 * area, down, across};
  float *const blue = scratch + 3 * area, *const red = blue + area / 4;
  for (std::int64_t image = 0; image < count; ++image) {
    const std::int64_t offset = image * 3 * height * width;
    parallel_for(down, kJpegPixels / across + 1, threads, [&](std::int64_t y) {
      kernels.gradient_planes(gradient + offset, inside + offset, height, width, planes, y);
    });
    parallel_for(down / 2, kJpegPixels / across + 1, threads,
                 [&](std::int64_t row) { kernels.gradient_chroma(planes, blue, red, row); });
    parallel_for(height, kJpegPixels / across + 1, threads, [&](std::int64_t y) {
      // Rows beyond the edge are the last row's.
      const std::int64_t end = y == height - 1 ? down : y + 1;
      for (std::int64_t row = y; row < end; ++row) {
        kernels.gradient_show(planes.luma + row * across, blue + row / 2 * half, red + row / 2 * half, across,
                              width, height * width, row > y, result + offset + y * width);
      }
    });
  }
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::out_of_memory;
}

}  // namespace shade_fast::cpu
