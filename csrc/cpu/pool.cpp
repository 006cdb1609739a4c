// Inner loops of max pooling, one row of the result at a time. Forward: the input is read once, a value and a byte are
// written per value of the result; gradient: 5 bytes read per value of the result, 4 written per value of the input.
#include "lanes.h"
#include "layers.h"
#include "windows.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {

void max_pool_row(const float* image, float* result, std::uint8_t* index, const Window& window, std::int64_t y) {
  const Axis down = rows(window), across = columns(window);
  const std::int64_t channels = window.channels, kernel = window.kernel;
  const Range in_rows = down.inside(y);
  for (std::int64_t x = 0; x < window.out_width; ++x) {
    const Range in_columns = across.inside(x);
    const float* const corner = image + (down.first_pixel(y) * window.width + across.first_pixel(x)) * channels;
    for_channels<Whole>(channels, [&](const auto& lanes, std::int64_t channel) {
      const auto pixel = [&](std::int64_t i, std::int64_t j) {
        return lanes.load(corner + (i * window.width + j) * channels + channel);
      };
      Vector largest = pixel(in_rows.begin, in_columns.begin);
      Integers place = Integers{} + static_cast<std::int32_t>(in_rows.begin * kernel + in_columns.begin);
      for (std::int64_t i = in_rows.begin; i < in_rows.end; ++i) {
        for (std::int64_t j = in_columns.begin; j < in_columns.end; ++j) {
          const Vector value = pixel(i, j);
          const Integers larger = (value > largest) | ((value != value) & (largest == largest));
          largest = larger ? value : largest;
          place = larger ? Integers{} + static_cast<std::int32_t>(i * kernel + j) : place;
        }
      }
      lanes.store(result + x * channels + channel, largest);
      if (index != nullptr) {
        lanes.store_bytes(index + x * channels + channel, __builtin_convertvector(place, Bytes));
      }
    });
  }
}

void max_pool_gradient_row(const float* gradient, const std::uint8_t* index, float* result, const Window& window,
                           const Finish& finish, std::int64_t y) {
  const Axis down = rows(window), across = columns(window);
  const std::int64_t channels = window.channels;
  const Range over = down.covering(y);
  for (std::int64_t x = 0; x < window.width; ++x) {
    const Range beside = across.covering(x);
    for_channels<Whole>(channels, [&](const auto& lanes, std::int64_t channel) {
      Vector total{};
      for (std::int64_t v = over.begin; v < over.end; ++v) {
        for (std::int64_t u = beside.begin; u < beside.end; ++u) {
          const std::int64_t place = (v * window.out_width + u) * channels + channel;
          const std::int64_t here = (y - down.first_pixel(v)) * window.kernel + x - across.first_pixel(u);
          const Integers chosen = __builtin_convertvector(lanes.load_bytes(index + place), Integers);
          const Vector value = lanes.load(gradient + place);
          total += chosen == Integers{} + static_cast<std::int32_t>(here) ? value : Vector{};
        }
      }
      finish_and_store(lanes, total, finish, x, channel, channels, result);
    });
  }
}

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
