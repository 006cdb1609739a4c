// A convolution as a product of matrices: the runs of input values under a few pixels' taps are copied next to each
// other, zeros where they lie outside the image, and multiplied with all filters. Each input value is copied once for
// each tap and read once for each panel of filters; 2 * taps * channels operations for each output value.
#include "convolution.h"
#include "finish.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

// A pixel of a phase: its image, and its place among the phase's output pixels.
struct Place {
  std::int64_t image, y, x;

  Place(const Phase& phase, std::int64_t pixel)
      : image(pixel / (phase.rows * phase.columns)),
        y(pixel / phase.columns % phase.rows),
        x(pixel % phase.columns) {}

  void advance(const Phase& phase) {
    if (++x < phase.columns) return;
    x = 0;
    if (++y < phase.rows) return;
    y = 0;
    ++image;
  }
};

// Part of a phase's rows of taps: rows [first, end), and of each the values [begin, begin + length).
struct Chunk {
  std::int64_t first, end, begin, length;
};

// Copies one pixel's part of a row of taps, block by block, `step` floats apart. The values from `low` to `high` of the
// row lie inside the image.
void copy_run(const float* image, std::int64_t base, std::int64_t low, std::int64_t high, const Chunk& chunk,
              float* to, std::int64_t step) {
  const std::int64_t end = chunk.begin + chunk.length;
  if (low <= chunk.begin && end <= high) {
    const float* from = image + (base + chunk.begin);
    std::int64_t left = chunk.length;
    for (; left >= kBlock; left -= kBlock, from += kBlock, to += step) store_block(to, load_block(from));
    if (left > 0) store_block(to, load_block(from, left));
    return;
  }
  for (std::int64_t k = chunk.begin; k < end; k += kBlock, to += step) {
    for (std::int64_t lane = 0; lane < kBlock; ++lane) {
      const bool inside = k + lane >= low && k + lane < high;
      to[lane] = inside ? image[base + k + lane] : 0.0f;
    }
  }
}

void gather(const Call& call, const Phase& phase, std::int64_t first, std::int64_t pixels, const Chunk& chunk,
            float* left) {
  const Convolution& convolution = call.convolution;
  const std::int64_t channels = convolution.channels;
  const std::int64_t step = pixels * kBlock;
  const std::int64_t run_step = ceil_div(chunk.length, kBlock) * step;
  Place at(phase, first);
  for (std::int64_t pixel = 0; pixel < pixels; ++pixel, at.advance(phase)) {
    const std::int64_t x = at.x * convolution.stride + phase.offset_x;
    const std::int64_t low = clamp(-x, 0, phase.taps_x) * channels;
    const std::int64_t high = clamp(convolution.width - x, 0, phase.taps_x) * channels;
    for (std::int64_t row = chunk.first; row < chunk.end; ++row) {
      const std::int64_t y = at.y * convolution.stride + phase.offset_y + row;
      const bool inside = y >= 0 && y < convolution.height;
      const std::int64_t base = ((at.image * convolution.height + y) * convolution.width + x) * channels;
      copy_run(call.input, base, inside ? low : 0, inside ? high : 0, chunk,
               left + pixel * kBlock + (row - chunk.first) * run_step, step);
    }
  }
}

// sums: [filters / panel, pixels, panel].
void add_up(const Call& call, const Phase& phase, std::int64_t first, std::int64_t pixels, float* left, float* sums) {
  const std::int64_t filters = round_up(call.convolution.filters, kBlock);
  const std::int64_t panel = panel_width();
  const std::int64_t run = phase.taps_x * call.convolution.channels;
  const std::int64_t rows_at_once = clamp(kDirectDepth / round_up(run, kBlock), 1, phase.taps_y);
  const std::int64_t length_at_once = clamp(run, 0, kDirectDepth);
  for (std::int64_t row = 0; row < phase.taps_y; row += rows_at_once) {
    for (std::int64_t begin = 0; begin < run; begin += length_at_once) {
      const Chunk chunk{row, row + clamp(phase.taps_y - row, 0, rows_at_once), begin,
                        clamp(run - begin, 0, length_at_once)};
      gather(call, phase, first, pixels, chunk, left);
      for (std::int64_t filter = 0; filter < filters; filter += panel) {
        const std::int64_t width = clamp(filters - filter, 0, panel);
        const float* right =
            call.packed + phase.weights + filter * phase.taps_y * run + (row * run + begin) * width;
        multiply({left, pixels, pixels, chunk.end - chunk.first, chunk.length, right, width, sums + filter * pixels,
                  row + begin > 0});
      }
    }
  }
}

void finish_pixels(const Call& call, const Phase& phase, std::int64_t first, std::int64_t pixels, const float* sums) {
  const Convolution& convolution = call.convolution;
  const std::int64_t filters = round_up(convolution.filters, kBlock);
  const std::int64_t panel = panel_width();
  Place at(phase, first);
  for (std::int64_t pixel = 0; pixel < pixels; ++pixel, at.advance(phase)) {
    const std::int64_t y = phase.first_y + at.y * phase.step, x = phase.first_x + at.x * phase.step;
    const std::int64_t target = (at.image * convolution.out_height + y) * convolution.out_width + x;
    for (std::int64_t filter = 0; filter < filters; filter += panel) {
      const std::int64_t width = clamp(filters - filter, 0, panel);
      const float* from = sums + filter * pixels + pixel * width;
      for (std::int64_t block = 0; block < width; block += kBlock) {
        finish_block(load_block(from + block), call.finish, target, filter + block, convolution.filters, call.result);
      }
    }
  }
}

}  // namespace

void direct(const Call& call, const Phase& phase, std::int64_t first, std::int64_t pixels, float* scratch) {
  const std::int64_t filters = round_up(call.convolution.filters, kBlock);
  const std::int64_t blocks = ceil_div(pixels, direct_pixels(phase, call.convolution));
  for (std::int64_t block = 0; block < blocks; ++block) {
    const std::int64_t begin = pixels * block / blocks;
    const std::int64_t count = pixels * (block + 1) / blocks - begin;
    float* const sums = scratch;
    float* const left = scratch + count * filters;
    if (phase.taps_y * phase.taps_x > 0) {
      add_up(call, phase, first + begin, count, left, sums);
    } else {
      for (std::int64_t i = 0; i < count * filters; ++i) sums[i] = 0.0f;
    }
    finish_pixels(call, phase, first + begin, count, sums);
  }
}

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
