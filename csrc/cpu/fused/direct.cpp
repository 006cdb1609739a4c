// A convolution as a product of matrices, with a row for each output pixel: the values under its taps, which in the
// input lie in one run for each row of taps. Pixels whose taps all lie between the image's left and right edge are
// multiplied where they are; the others' values are copied, with zeros for what lies outside. 2 * taps * channels
// operations for each output value; the input is read once for each panel of filters, the weights once for each block
// of pixels.
#include "../vector/epilogue.h"
#include "convolution.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

// Part of the taps: rows [first, end) of them, and of each the values [begin, begin + length).
struct Chunk {
  std::int64_t first, end, begin, length;
};

// Where an output pixel's taps begin in the input, and where the pixel goes.
struct Pixel {
  std::int64_t image, y, x, target;
};

class Direct {
 public:
  Direct(const Call& call, const Phase& phase, float* scratch)
      : call_(call),
        phase_(phase),
        c_(call.convolution),
        filters_(round_up(c_.filters, kBlock)),
        run_(phase.taps_x * c_.channels),
        sums_(scratch),
        copies_(scratch + kDirectPixels * filters_) {}

  void run_row(std::int64_t number) {
    const std::int64_t last_left = c_.width - phase_.taps_x - phase_.offset_x;
    const std::int64_t end = clamp(last_left >= 0 ? last_left / c_.stride + 1 : 0, 0, phase_.columns);
    const std::int64_t first = clamp(ceil_div(clamp(-phase_.offset_x, 0, c_.stride * end), c_.stride), 0, end);
    for (std::int64_t x = 0; x < first; ++x) run_edge(pixel(number, x));
    const std::int64_t blocks = ceil_div(end - first, pixels_at_once());
    for (std::int64_t block = 0; block < blocks; ++block) {
      const std::int64_t begin = (end - first) * block / blocks;
      run_inner(pixel(number, first + begin), (end - first) * (block + 1) / blocks - begin);
    }
    for (std::int64_t x = end; x < phase_.columns; ++x) run_edge(pixel(number, x));
  }

  void run_edges() {
    if (edges_ == 0) return;
    add_up(0, phase_.taps_y, edges_, [this](const Chunk& chunk) { return gather(chunk); });
    for (std::int64_t i = 0; i < edges_; ++i) store_pixel(i, edges_, edge_[i].target, call_.epilogue);
    edges_ = 0;
  }

 private:
  static constexpr std::int64_t kMostEdges = 14;

  struct Left {
    const float* values;
    std::int64_t row_step, run_step;
  };

  std::int64_t pixels_at_once() const { return phase_.taps_y * run_ * filters_ <= 160 * 1024 ? 14 : kDirectPixels; }

  Pixel pixel(std::int64_t number, std::int64_t x) const {
    const std::int64_t image = number / phase_.rows, y = number % phase_.rows;
    const std::int64_t out_y = phase_.first_y + y * phase_.step, out_x = phase_.first_x + x * phase_.step;
    return {image, y * c_.stride + phase_.offset_y, x * c_.stride + phase_.offset_x,
            (image * c_.out_height + out_y) * c_.out_width + out_x};
  }

  std::int64_t place(const Pixel& at, std::int64_t row) const {
    return ((at.image * c_.height + at.y + row) * c_.width + at.x) * c_.channels;
  }

  void run_edge(const Pixel& at) {
    edge_[edges_++] = at;
    if (edges_ == kMostEdges) run_edges();
  }

  // `count` pixels from one on, in a row.
  void run_inner(const Pixel& at, std::int64_t count) {
    const std::int64_t first = clamp(-at.y, 0, phase_.taps_y);
    const std::int64_t end = clamp(c_.height - at.y, first, phase_.taps_y);
    add_up(first, end, count, [&](const Chunk& chunk) {
      return Left{call_.input + place(at, chunk.first) + chunk.begin, c_.stride * c_.channels, c_.width * c_.channels};
    });
    const Epilogue epilogue = call_.epilogue;
    for (std::int64_t i = 0; i < count; ++i) store_pixel(i, count, at.target + i * phase_.step, epilogue);
  }

  // sums: [filters / panel, pixels, panel], over the rows of taps [first, end). What `left` gives are a chunk's values.
  template <typename Source>
  void add_up(std::int64_t first, std::int64_t end, std::int64_t pixels, const Source& left) {
    const std::int64_t panel = panel_width();
    const std::int64_t depth = phase_.taps_y * run_;
    if (first >= end || run_ == 0) {
      for (std::int64_t i = 0; i < pixels * filters_; ++i) sums_[i] = 0.0f;
      return;
    }
    const std::int64_t rows_at_once = clamp(kDirectDepth / run_, 1, end - first);
    const std::int64_t length_at_once = clamp(run_, 0, kDirectDepth);
    for (std::int64_t row = first; row < end; row += rows_at_once) {
      for (std::int64_t begin = 0; begin < run_; begin += length_at_once) {
        const Chunk chunk{row, clamp(row + rows_at_once, 0, end), begin, clamp(run_ - begin, 0, length_at_once)};
        const Left from = left(chunk);
        for (std::int64_t filter = 0; filter < filters_; filter += panel) {
          const std::int64_t width = clamp(filters_ - filter, 0, panel);
          const float* right = call_.packed + phase_.weights + filter * depth + (row * run_ + begin) * width;
          const float* next = filter + panel + width <= filters_ ? right + panel * depth : nullptr;
          multiply({from.values, from.row_step, from.run_step, pixels, (chunk.end - chunk.first) * chunk.length,
                    chunk.length, right, width, sums_ + filter * pixels, row + begin > first, next});
        }
      }
    }
  }

  Left gather(const Chunk& chunk) const {
    const Left left{copies_, kDirectDepth + kBlock, chunk.length};
    for (std::int64_t i = 0; i < edges_; ++i) {
      const Pixel& at = edge_[i];
      const std::int64_t low = clamp(-at.x, 0, phase_.taps_x) * c_.channels;
      const std::int64_t high = clamp(c_.width - at.x, 0, phase_.taps_x) * c_.channels;
      float* to = copies_ + i * left.row_step;
      for (std::int64_t row = chunk.first; row < chunk.end; ++row) {
        const bool inside = at.y + row >= 0 && at.y + row < c_.height;
        const std::int64_t from = place(at, row);
        for (std::int64_t k = chunk.begin; k < chunk.begin + chunk.length; ++k) {
          *to++ = inside && k >= low && k < high ? call_.input[from + k] : 0.0f;
        }
      }
    }
    return left;
  }

  // Pixel number i of the `pixels` whose sums there are.
  void store_pixel(std::int64_t i, std::int64_t pixels, std::int64_t target, const Epilogue& epilogue) const {
    const std::int64_t panel = panel_width();
    for (std::int64_t filter = 0; filter < filters_; filter += panel) {
      const std::int64_t width = clamp(filters_ - filter, 0, panel);
      const float* from = sums_ + filter * pixels + i * width;
      for (std::int64_t block = 0; block < width; block += kBlock) {
        apply_and_store_block(load_block(from + block), epilogue, target, filter + block, c_.filters, call_.result, call_.stream);
      }
    }
  }

  const Call& call_;
  const Phase& phase_;
  const Convolution& c_;
  std::int64_t filters_, run_;
  float* sums_;
  float* copies_;
  Pixel edge_[kMostEdges];
  std::int64_t edges_ = 0;
};

}  // namespace

void direct(const Call& call, const Phase& phase, std::int64_t first, std::int64_t rows, float* scratch) {
  Direct work(call, phase, scratch);
  for (std::int64_t row = first; row < first + rows; ++row) work.run_row(row);
  work.run_edges();
  if (call.stream) stores_done();
}

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
