// Where windows and pixels meet along one axis of an image.
#pragma once

#include <cstdint>

#include "../layers.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

struct Range {
  std::int64_t begin, end;
};

struct Axis {
  std::int64_t size, windows, kernel, stride, pad;

  std::int64_t first_pixel(std::int64_t window) const { return window * stride - pad; }

  // Those of a window's `kernel` pixels that are inside the image.
  Range inside(std::int64_t window) const {
    const std::int64_t first = first_pixel(window);
    return {first < 0 ? -first : 0, first + kernel > size ? size - first : kernel};
  }

  // The windows that a pixel, inside the image or not, is in.
  Range covering(std::int64_t pixel) const {
    const std::int64_t place = pixel + pad;
    const std::int64_t begin = place < kernel ? 0 : (place - kernel) / stride + 1;
    const std::int64_t end = place / stride + 1;
    return {begin, end < windows ? end : windows};
  }
};

// The windows that contain a pixel, for pixels from left to right.
class Sweep {
 public:
  explicit Sweep(const Axis& axis) : axis_(axis) {}

  Range at(std::int64_t pixel) {
    while (end_ < axis_.windows && axis_.first_pixel(end_) <= pixel) ++end_;
    while (begin_ < end_ && axis_.first_pixel(begin_) + axis_.kernel <= pixel) ++begin_;
    return {begin_, end_};
  }

 private:
  Axis axis_;
  std::int64_t begin_ = 0, end_ = 0;
};

inline Axis rows(const Window& window) {
  return {window.height, window.out_height, window.kernel, window.stride, window.pad};
}

inline Axis columns(const Window& window) {
  return {window.width, window.out_width, window.kernel, window.stride, window.pad};
}

}  // namespace
}  // namespace shade_fast::cpu::SHADE_FAST_ISA
