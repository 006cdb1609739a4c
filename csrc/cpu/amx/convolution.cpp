// A convolution as a direct sum in AMX's tiles (see multiply.h).
//
// A task splits the input under its output pixels once, with zeros for what lies outside: for every run of 32 channels
// first their larger parts, then their smaller ones. 16 pixels in a row are then a tile wherever they begin, so that every
// tap reads the same memory. Two groups of pixels meet two tiles of filters at a time; meanwhile the vector units store
// the sums before, and split what the next groups need. The input is read once for each task, and a panel's weights once
// for each two groups, from the second-level cache.
#include "multiply.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

// Work done in equal parts beside a product's steps: from number `done` up to number `end`.
struct Meanwhile {
  std::int64_t end = 0, done = 0;

  void begin(std::int64_t from, std::int64_t to, std::int64_t steps) {
    end = to;
    done = from;
    due_ = from << kBits;
    rate_ = ceil_div((to - from) << kBits, steps > 0 ? steps : 1);
  }

  // How far it is to come by the next step.
  std::int64_t next() {
    due_ += rate_;
    return clamp(due_ >> kBits, 0, end);
  }

 private:
  static constexpr int kBits = 16;
  std::int64_t due_ = 0, rate_ = 0;
};

// Sums that wait to be stored, and the output pixels they belong to.
struct Pending {
  const float* sums = nullptr;
  const std::int32_t* targets = nullptr;
  std::int64_t pixels = 0, filter = 0;
  int filter_tiles = 1;
};

class Tiles {
 public:
  Tiles(const Call& call, const Phase& phase, const TilesTask& task, float* scratch)
      : call_(call),
        phase_(phase),
        c_(call.convolution),
        task_(task),
        layout_(c_, phase, task.rows, task.columns),
        steps_{layout_.runs, layout_.plane(), phase.taps_y,        layout_.pitch * kRunBytes,
               phase.taps_x, kRunBytes,       c_.stride * kRunBytes},
        region_(reinterpret_cast<std::uint8_t*>(scratch)),
        sums_(scratch + layout_.region_floats()),
        targets_(reinterpret_cast<std::int32_t*>(sums_ + 2 * kTilesSums)) {}

  void run() {
    find_targets();
    split_until(layout_.rows_for(0) * layout_.pitch);
    const OwnTiles own;
    for (std::int64_t filter = task_.first_filter; filter < task_.end_filter; filter += kTilesPanel) run_panel(filter);
    storing_.begin(0, pending_.pixels, 1);
    store_until(pending_.pixels);
  }

 private:
  // targets: for every group of 16 pixels, which output pixels they are, counted from the task's first row on; -1: none.
  void find_targets() const {
    for (std::int64_t i = 0; i < layout_.groups * 16; ++i) {
      std::int64_t y, x;
      layout_.pixel(i, y, x);
      const std::int64_t out_x = phase_.first_x + (task_.first_column + x) * phase_.step;
      const bool there = y < task_.rows && x < task_.columns;
      targets_[i] = there ? static_cast<std::int32_t>(y * phase_.step * c_.out_width + out_x) : -1;
    }
  }

  void run_panel(std::int64_t filter) {
    const auto* const weights = reinterpret_cast<const std::uint8_t*>(call_.packed + phase_.weights) +
                                filter / kBlock * steps_.count() * 2 * kTile;
    const int filter_tiles = round_up(c_.filters, kBlock) - filter > kBlock ? 2 : 1;
    for (std::int64_t group = 0; group < layout_.groups; group += 2) {
      const int pixel_tiles = group + 1 < layout_.groups ? 2 : 1;
      float* const sums = sums_ + half_ * kTilesSums;
      half_ ^= 1;
      storing_.begin(0, pending_.pixels, steps_.count());
      const std::int64_t split = splitting_.done, needed = layout_.rows_for(group + 2) * layout_.pitch;
      splitting_.begin(split, needed < split ? split : needed, steps_.count());
      const std::uint8_t* const first = region_ + layout_.place(group) * kRunBytes;
      const std::uint8_t* const second = region_ + layout_.place(group + pixel_tiles - 1) * kRunBytes;
      multiply_tiles(pixel_tiles, filter_tiles, steps_, first, second, weights, sums, [this] {
        store_until(storing_.next());
        split_until(splitting_.next());
      });
      store_until(storing_.end);
      split_until(splitting_.end);
      pending_ = {sums, targets_ + group * 16, 16 * pixel_tiles, filter, filter_tiles};
    }
  }

  // Splits the region's pixels, row by row, up to number `end`.
  inline __attribute__((always_inline)) void split_until(std::int64_t end) {
    for (; splitting_.done < end; ++splitting_.done) {
      if (split_x_ == layout_.pitch) {
        split_x_ = 0;
        ++split_y_;
      }
      split_pixel(split_y_, split_x_++);
    }
  }

  void split_pixel(std::int64_t row, std::int64_t column) const {
    const std::int64_t y = task_.first_row * c_.stride + phase_.offset_y + row;
    const std::int64_t x = task_.first_column * c_.stride + phase_.offset_x + column;
    const bool inside = y >= 0 && y < c_.height && x >= 0 && x < c_.width;
    const std::int64_t channels = inside ? c_.channels : 0;
    const float* from = inside ? call_.input + ((task_.image * c_.height + y) * c_.width + x) * c_.channels : nullptr;
    std::uint8_t* to = region_ + (row * layout_.pitch + column) * kRunBytes;
    std::int64_t channel = 0;
    for (; channel + kTilesRun <= channels; channel += kTilesRun, to += layout_.plane()) {
      __builtin_prefetch(from + channel + kAhead);
      __builtin_prefetch(from + channel + kAhead + kLanes);
      store_split(split(load(from + channel), load(from + channel + kLanes)), to);
    }
    for (; channel < c_.channels; channel += kTilesRun, to += layout_.plane()) {
      const std::int64_t left = clamp(channels - channel, 0, kTilesRun);
      const Vector second = left > kLanes ? load_first(from + channel + kLanes, left - kLanes) : Vector{};
      store_split(split(left > 0 ? load_first(from + channel, clamp(left, 0, kLanes)) : Vector{}, second), to);
    }
  }

  // Stores the sums of the pixels that wait, up to number `end`.
  inline __attribute__((always_inline)) void store_until(std::int64_t end) {
    const Epilogue parts = call_.epilogue;
    const std::int64_t first_row = task_.image * c_.out_height + phase_.first_y + task_.first_row * phase_.step;
    for (; storing_.done < end; ++storing_.done) {
      const std::int32_t target = pending_.targets[storing_.done];
      if (target < 0) continue;
      const float* from = pending_.sums + storing_.done / 16 * pending_.filter_tiles * 256 + storing_.done % 16 * 16;
      for (int tile = 0; tile < pending_.filter_tiles; ++tile) {
        apply_and_store_block(load_block(from + tile * 256), parts, first_row * c_.out_width + target, pending_.filter + tile * kBlock, c_.filters,
                     call_.result, call_.stream);
      }
    }
  }

  const Call& call_;
  const Phase& phase_;
  const Convolution& c_;
  const TilesTask task_;
  const TilesLayout layout_;
  const Steps steps_;
  std::uint8_t* region_;
  float* sums_;
  std::int32_t* targets_;
  int half_ = 0;
  Pending pending_;
  Meanwhile storing_, splitting_;
  std::int64_t split_y_ = 0, split_x_ = 0;
};

}  // namespace

void tiles(const Call& call, const Phase& phase, const TilesTask& task, float* scratch) {
  Tiles(call, phase, task, scratch).run();
  if (call.stream) stores_done();
}

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
