// Layers of a frozen network whose pixels are made from windows: pooling and blurs, one row of the result a task.
#include <new>

#include "../shade_fast.h"
#include "blocks.h"
#include "isa.h"
#include "layers.h"

namespace shade_fast::cpu {
namespace {

struct Kernels {
  decltype(&portable::max_pool_row) max_pool_row;
  decltype(&portable::max_pool_gradient_row) max_pool_gradient_row;
  decltype(&portable::blur_row) blur_row;
  decltype(&portable::blur_gradient_row) blur_gradient_row;
};

const Kernels kKernels[kWidths] = {
#if defined(SHADE_FAST_X86)
    {avx512::max_pool_row, avx512::max_pool_gradient_row, avx512::blur_row, avx512::blur_gradient_row},
    {avx2::max_pool_row, avx2::max_pool_gradient_row, avx2::blur_row, avx2::blur_gradient_row},
#endif
    {portable::max_pool_row, portable::max_pool_gradient_row, portable::blur_row, portable::blur_gradient_row},
};

// How far the last window reaches past the last pixel; negative where it ends before it.
std::int64_t reach(std::int64_t size, std::int64_t windows, const Window& window) {
  return (windows - 1) * window.stride - window.pad + window.kernel - size;
}

bool is_sound(const Window& window) {
  return window.images >= 0 && window.height >= 1 && window.width >= 1 && window.channels >= 1 &&
         window.out_height >= 1 && window.out_width >= 1 && window.kernel >= 1 && window.kernel <= kLargestKernel &&
         window.stride >= 1 && window.pad >= 0;
}

// Every window holds a pixel of the image.
bool fits_pool(const Window& window) {
  return is_sound(window) && window.pad < window.kernel &&
         reach(window.height, window.out_height, window) < window.kernel &&
         reach(window.width, window.out_width, window) < window.kernel;
}

// Every pixel outside the image has a mirror image inside.
bool fits_blur(const Window& window) {
  return is_sound(window) && window.pad < window.height && window.pad < window.width &&
         reach(window.height, window.out_height, window) < window.height &&
         reach(window.width, window.out_width, window) < window.width;
}

struct Row {
  std::int64_t image;
  std::int64_t y;
};

template <typename Work>
void for_rows(std::int64_t images, std::int64_t height, std::int64_t row_values, int threads, const Work& work) {
  parallel_for(images * height, kThreadValues / row_values + 1, threads,
               [&](std::int64_t task) { work(Row{task / height, task % height}); });
}

Extent image_extent(const Window& window) { return {window.images, window.height * window.width, window.channels}; }
Extent out_extent(const Window& window) {
  return {window.images, window.out_height * window.out_width, window.channels};
}
std::int64_t image_values(const Window& window) { return window.height * window.width * window.channels; }
std::int64_t row_values(const Window& window) { return window.width * window.channels; }
std::int64_t out_row_values(const Window& window) { return window.out_width * window.channels; }

// Runs work(kernels, image's first value, row's first value in the result, y) for every row of the result.
template <typename Work>
void for_result_rows(const Window& window, int threads, const Work& work) {
  for_rows(window.images, window.out_height, out_row_values(window), threads, [&](Row row) {
    work(selected(kKernels), row.image * image_values(window),
         (row.image * window.out_height + row.y) * out_row_values(window), row.y);
  });
}

// Runs work(kernels, windows' first value, row's first value in the result, row's finish, y) for every row of the
// image, whose gradient is the result.
template <typename Work>
void for_input_rows(const Window& window, const Finish& finish, int threads, const Work& work) {
  for_rows(window.images, window.height, row_values(window), threads, [&](Row row) {
    const std::int64_t number = row.image * window.height + row.y;
    work(selected(kKernels), row.image * window.out_height * out_row_values(window), number * row_values(window),
         from_pixel(finish, number * window.width, window.channels), row.y);
  });
}

}  // namespace

Status max_pool(const float* input, float* result, std::uint8_t* index, const Window& window, int threads) try {
  if (!fits_pool(window) || threads < 1) return Status::bad_argument;
  const bool stream = streams(result, out_extent(window), {});
  for_result_rows(window, threads, [&](const Kernels& kernels, std::int64_t image, std::int64_t row, std::int64_t y) {
    kernels.max_pool_row(input + image, result + row, index == nullptr ? nullptr : index + row, window, y, stream);
  });
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::out_of_memory;
}

Status max_pool_gradient(const float* gradient, const std::uint8_t* index, float* result, const Window& window,
                         const Finish& finish, int threads) try {
  if (!fits_pool(window) || threads < 1) return Status::bad_argument;
  const bool stream = streams(result, image_extent(window), finish);
  for_input_rows(window, finish, threads,
                 [&](const Kernels& kernels, std::int64_t windows, std::int64_t row, const Finish& parts,
                     std::int64_t y) {
                   kernels.max_pool_gradient_row(gradient + windows, index + windows, result + row, window, parts, y,
                                                 stream);
                 });
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::out_of_memory;
}

Status blur(const float* input, const float* taps, float* result, const Window& window, int threads) try {
  if (!fits_blur(window) || threads < 1) return Status::bad_argument;
  for_result_rows(window, threads, [&](const Kernels& kernels, std::int64_t image, std::int64_t row, std::int64_t y) {
    kernels.blur_row(input + image, taps, result + row, window, y);
  });
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::out_of_memory;
}

Status blur_gradient(const float* gradient, const float* taps, float* result, const Window& window,
                     const Finish& finish, int threads) try {
  if (!fits_blur(window) || threads < 1) return Status::bad_argument;
  const bool stream = streams(result, image_extent(window), finish);
  for_input_rows(window, finish, threads,
                 [&](const Kernels& kernels, std::int64_t windows, std::int64_t row, const Finish& parts,
                     std::int64_t y) {
                   kernels.blur_gradient_row(gradient + windows, taps, result + row, window, parts, y, stream);
                 });
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::out_of_memory;
}

}  // namespace shade_fast::cpu
