// Layers of a frozen network whose pixels are made from windows: pooling and blurs, one row of the result a task.
#include <new>

#include "../shade_fast.h"
#include "isa.h"
#include "layers.h"
#include "runs.h"

namespace shade_fast::cpu {
namespace {

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

Extent image_extent(const Window& window) { return {window.images, window.height * window.width, window.channels}; }
Extent out_extent(const Window& window) {
  return {window.images, window.out_height * window.out_width, window.channels};
}

// A row of the result: its first value's place there, that of its image's first value in what is read, and its number.
struct Row {
  std::int64_t result, image, y;
};

template <typename Work>
void for_rows(std::int64_t images, std::int64_t height, std::int64_t row_values, int threads, const Work& work) {
  parallel_for(images * height, kThreadValues / row_values + 1, threads,
               [&](std::int64_t number) { work(number, number / height, number % height); });
}

// Calls work(row) for every row of windows.
template <typename Work>
void for_result_rows(const Window& window, int threads, const Work& work) {
  const std::int64_t row_values = window.out_width * window.channels, read = values_per_image(image_extent(window));
  for_rows(window.images, window.out_height, row_values, threads,
           [&](std::int64_t number, std::int64_t image, std::int64_t y) {
             work(Row{number * row_values, image * read, y});
           });
}

// Calls work(row, its epilogue) for every row of the image, whose gradient is the result.
template <typename Work>
void for_input_rows(const Window& window, const Epilogue& epilogue, int threads, const Work& work) {
  const std::int64_t row_values = window.width * window.channels, read = values_per_image(out_extent(window));
  for_rows(window.images, window.height, row_values, threads,
           [&](std::int64_t number, std::int64_t image, std::int64_t y) {
             work(Row{number * row_values, image * read, y},
                  from_pixel(epilogue, number * window.width, window.channels));
           });
}

}  // namespace

Status max_pool(const float* input, float* result, std::uint8_t* index, const Window& window, int threads) try {
  if (!fits_pool(window) || threads < 1) return Status::bad_argument;
  const MaxPoolKernels& kernels = SHADE_FAST_SELECTED(max_pool);
  const bool stream = streams(result, out_extent(window), {});
  for_result_rows(window, threads, [&](const Row& row) {
    kernels.row(input + row.image, result + row.result, index == nullptr ? nullptr : index + row.result, window, row.y,
                stream);
  });
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::out_of_memory;
}

Status max_pool_gradient(const float* gradient, const std::uint8_t* index, float* result, const Window& window,
                         const Epilogue& epilogue, int threads) try {
  if (!fits_pool(window) || threads < 1) return Status::bad_argument;
  const MaxPoolKernels& kernels = SHADE_FAST_SELECTED(max_pool);
  const bool stream = streams(result, image_extent(window), epilogue);
  for_input_rows(window, epilogue, threads, [&](const Row& row, const Epilogue& parts) {
    kernels.gradient_row(gradient + row.image, index + row.image, result + row.result, window, parts, row.y, stream);
  });
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::out_of_memory;
}

Status blur(const float* input, const float* taps, float* result, const Window& window, int threads) try {
  if (!fits_blur(window) || threads < 1) return Status::bad_argument;
  const BlurKernels& kernels = SHADE_FAST_SELECTED(blur);
  for_result_rows(window, threads, [&](const Row& row) {
    kernels.row(input + row.image, taps, result + row.result, window, row.y);
  });
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::out_of_memory;
}

Status blur_gradient(const float* gradient, const float* taps, float* result, const Window& window,
                     const Epilogue& epilogue, int threads) try {
  if (!fits_blur(window) || threads < 1) return Status::bad_argument;
  const BlurKernels& kernels = SHADE_FAST_SELECTED(blur);
  const bool stream = streams(result, image_extent(window), epilogue);
  for_input_rows(window, epilogue, threads, [&](const Row& row, const Epilogue& parts) {
    kernels.gradient_row(gradient + row.image, taps, result + row.result, window, parts, row.y, stream);
  });
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::out_of_memory;
}

}  // namespace shade_fast::cpu
