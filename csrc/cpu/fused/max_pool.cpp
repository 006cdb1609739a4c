// Inner loops of max pooling, one row of the result at a time. Forward: the input is read once, a value and a byte are
// written per value of the result; gradient: 5 bytes read per value of the result, 4 written per value of the input.
#include "../layers.h"
#include "../vector/epilogue.h"
#include "../vector/windows.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

// The first larger value takes the place of the largest so far, and so does the first NaN.
SHADE_FAST_LANES void take_larger(Vector value, int number, Vector& largest, Integers& place) {
#if defined(__AVX512F__)
  const __mmask16 ordered = _mm512_cmp_ps_mask(largest, largest, _CMP_ORD_Q);
  const __mmask16 larger = _mm512_mask_cmp_ps_mask(ordered, value, largest, _CMP_NLE_UQ);
  largest = _mm512_mask_mov_ps(largest, larger, value);
  place = reinterpret_cast<Integers>(
      _mm512_mask_mov_epi32(reinterpret_cast<__m512i>(place), larger, _mm512_set1_epi32(number)));
#else
  const Integers larger = ~(value <= largest) & (largest == largest);
  largest = larger ? value : largest;
  place = larger ? Integers{} + number : place;
#endif
}

// The largest values of a window's rows and columns, and their places in it.
template <typename Lanes>
SHADE_FAST_LANES void pool(const Lanes& lanes, const float* corner, std::int64_t row_values, std::int64_t channels,
                           Range rows, Range columns, int kernel, float* result, std::uint8_t* index) {
  Vector largest = lanes.load(corner + rows.begin * row_values + columns.begin * channels);
  Integers place = Integers{} + static_cast<int>(rows.begin * kernel + columns.begin);
  for (std::int64_t i = rows.begin; i < rows.end; ++i) {
    for (std::int64_t j = columns.begin; j < columns.end; ++j) {
      if (i == rows.begin && j == columns.begin) continue;
      const Vector value = lanes.load(corner + i * row_values + j * channels);
      take_larger(value, static_cast<int>(i * kernel + j), largest, place);
    }
  }
  lanes.store(result, largest);
  if (index != nullptr) lanes.store_bytes(index, narrowed(place));
}

template <typename Full>
SHADE_FAST_LANES void pool_pixel(const float* corner, std::int64_t row_values, std::int64_t channels, Range rows,
                                 Range columns, int kernel, float* result, std::uint8_t* index) {
  for_channels<Full>(channels, [&](const auto& lanes, std::int64_t channel) {
    pool(lanes, corner + channel, row_values, channels, rows, columns, kernel, result + channel,
         index == nullptr ? nullptr : index + channel);
  });
}

void forward_row(const float* image, float* result, std::uint8_t* index, const Window& window, std::int64_t y,
                 bool stream) {
  const Axis down = rows(window), across = columns(window);
  const std::int64_t channels = window.channels, row_values = window.width * channels;
  const int kernel = static_cast<int>(window.kernel);
  const Range in_rows = down.inside(y);
  with_stores(stream, [&](auto full) {
    using Full = decltype(full);
    for (std::int64_t x = 0; x < window.out_width; ++x) {
      const Range in_columns = across.inside(x);
      const float* const corner = image + down.first_pixel(y) * row_values + across.first_pixel(x) * channels;
      float* const to = result + x * channels;
      std::uint8_t* const to_index = index == nullptr ? nullptr : index + x * channels;
      // Whole windows of the usual sizes have loops of constant length, which the compiler unrolls.
      const bool whole = in_rows.end - in_rows.begin == kernel && in_columns.end - in_columns.begin == kernel;
      if (whole && kernel == 2) {
        pool_pixel<Full>(corner, row_values, channels, {0, 2}, {0, 2}, 2, to, to_index);
      } else if (whole && kernel == 3) {
        pool_pixel<Full>(corner, row_values, channels, {0, 3}, {0, 3}, 3, to, to_index);
      } else {
        pool_pixel<Full>(corner, row_values, channels, in_rows, in_columns, kernel, to, to_index);
      }
    }
  });
}

void gradient_row(const float* gradient, const std::uint8_t* index, float* result, const Window& window,
                  const Epilogue& parts, std::int64_t y, bool stream) {
  const Epilogue epilogue = parts;
  const Axis down = rows(window), across = columns(window);
  const std::int64_t channels = window.channels;
  const Range over = down.covering(y);
  with_stores(stream, [&](auto full) {
    Sweep sweep(across);
    for (std::int64_t x = 0; x < window.width; ++x) {
      const Range beside = sweep.at(x);
      for_channels_together<4, decltype(full)>(channels, [&](const auto& lanes, auto count, std::int64_t channel) {
        constexpr int kCount = decltype(count)::value;
        Vector totals[kCount] = {};
        for (std::int64_t v = over.begin; v < over.end; ++v) {
          const std::int64_t row = (y - down.first_pixel(v)) * window.kernel + x;
          for (std::int64_t u = beside.begin; u < beside.end; ++u) {
            const std::int64_t place = (v * window.out_width + u) * channels + channel;
            const int here = static_cast<int>(row - across.first_pixel(u));
            for (int k = 0; k < kCount; ++k) {
              const std::int64_t at = place + k * kLanes;
              totals[k] += keep_equal(lanes.load(gradient + at), lanes.load_bytes(index + at), here);
            }
          }
        }
        for (int k = 0; k < kCount; ++k) {
          apply_and_store(lanes, totals[k], epilogue, x, channel + k * kLanes, channels, result);
        }
      });
    }
  });
}

}  // namespace

const MaxPoolKernels max_pool = {forward_row, gradient_row};

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
