// Inner loops of JPEG's arithmetic with colours at half the resolution, and of its gradient. Planes are padded to whole
// blocks of 16x16 pixels; T.81 and T.871 name the constants.
#include "../pixels.h"

namespace shade_fast::cpu::SHADE_FAST_ISA {
namespace {

constexpr std::int64_t kBlock = 8, kUnit = 16;
// Chroma columns that are enlarged, or shrunk, together.
constexpr std::int64_t kTile = 64;

// Half of cos(k * pi / 16); kD is that of k = 4.
constexpr float kA = 0.4903926402016152f, kB = 0.4619397662556434f, kC = 0.4157348061512726f, kD = 0.3535533905932738f;
constexpr float kE = 0.2777851165098011f, kF = 0.1913417161825449f, kG = 0.0975451610080642f;
// The cosine transform of 8 values, rows are frequencies, orthonormal but for rows 0 and 4, which lack their kD: so
// coefficients that are whole eighths stay exact, and those halfway between two steps are rounded to even.
constexpr float kCosines[8][8] = {
    {1, 1, 1, 1, 1, 1, 1, 1},             {kA, kC, kE, kG, -kG, -kE, -kC, -kA}, {kB, kF, -kF, -kB, -kB, -kF, kF, kB},
    {kC, -kG, -kA, -kE, kE, kA, kG, -kC}, {1, -1, -1, 1, 1, -1, -1, 1},         {kE, -kA, kG, kC, -kC, -kG, kA, -kE},
    {kF, -kB, kB, -kF, -kF, kB, -kB, kF}, {kG, -kE, kC, -kA, kA, -kC, kE, -kG},
};
// What they lack, of frequencies 0 and 4 in both directions, and of others.
constexpr float kLacking[2][8] = {{0.125f, kD, kD, kD, 0.125f, kD, kD, kD}, {kD, 1, 1, 1, kD, 1, 1, 1}};

// From RGB, and back.
constexpr float kLuma[3] = {0.299f, 0.587f, 0.114f};
constexpr float kBlue[3] = {-0.168735892f, -0.331264108f, 0.5f};
constexpr float kRed[3] = {0.5f, -0.418687589f, -0.081312411f};
constexpr float kRedOfRed = 1.402f, kGreenOfBlue = -0.344136286f, kGreenOfRed = -0.714136286f, kBlueOfBlue = 1.772f;

// Eight values side by side.
using Eight = float __attribute__((vector_size(32)));

SHADE_FAST_PIXEL std::int64_t at_most(std::int64_t value, std::int64_t most) { return value < most ? value : most; }

// result[i] = sum over k of matrix[i][k] * rows[k], or of matrix[k][i].
template <bool kTransposed>
SHADE_FAST_PIXEL void combine_rows(const Eight* rows, Eight* result) {
  for (int i = 0; i < 8; ++i) {
    Eight sum = (kTransposed ? kCosines[0][i] : kCosines[i][0]) * rows[0];
    for (int k = 1; k < 8; ++k) sum += (kTransposed ? kCosines[k][i] : kCosines[i][k]) * rows[k];
    result[i] = sum;
  }
}

SHADE_FAST_PIXEL void transpose(Eight* rows) {
  for (int i = 0; i < 8; ++i) {
    for (int k = i + 1; k < 8; ++k) {
      const float value = rows[i][k];
      rows[i][k] = rows[k][i];
      rows[k][i] = value;
    }
  }
}

// What is left of an 8x8 block, whose rows are `pitch` floats apart, when its coefficients are multiples of `steps`
// ([frequency across][frequency down]).
SHADE_FAST_PIXEL void requantize(float* values, std::int64_t pitch, const float* steps) {
  Eight rows[8], mixed[8];
  for (int i = 0; i < 8; ++i) __builtin_memcpy(&rows[i], values + i * pitch, sizeof(Eight));
  combine_rows<false>(rows, mixed);
  transpose(mixed);
  combine_rows<false>(mixed, rows);
  for (int i = 0; i < 8; ++i) {
    Eight step, lacking;
    __builtin_memcpy(&step, steps + i * kBlock, sizeof(Eight));
    __builtin_memcpy(&lacking, kLacking[i % 4 == 0 ? 0 : 1], sizeof(Eight));
    const Eight count = rows[i] * lacking / step;
    rows[i] = ((count + kRoundHalfEven) - kRoundHalfEven) * step * lacking;
  }
  combine_rows<true>(rows, mixed);
  transpose(mixed);
  combine_rows<true>(mixed, rows);
  for (int i = 0; i < 8; ++i) __builtin_memcpy(values + i * pitch, &rows[i], sizeof(Eight));
}

// values[y][x] for a 16x16 block of a plane; beyond its edges, its last pixels.
SHADE_FAST_PIXEL void fetch(const float* plane, std::int64_t height, std::int64_t width, std::int64_t top,
                            std::int64_t left, float (*values)[kUnit]) {
  for (std::int64_t y = 0; y < kUnit; ++y) {
    const float* const row = plane + at_most(top + y, height - 1) * width;
    if (left + kUnit <= width) {
      __builtin_memcpy(values[y], row + left, sizeof(values[y]));
    } else {
      for (std::int64_t x = 0; x < kUnit; ++x) values[y][x] = row[at_most(left + x, width - 1)];
    }
  }
}

SHADE_FAST_PIXEL float mix(const float (&weights)[3], float red, float green, float blue) {
  return (weights[0] * red + weights[1] * green) + weights[2] * blue;
}

// A chroma plane's 16x16 block, averaged to 8x8 and requantized.
SHADE_FAST_PIXEL void store_chroma(const float (*values)[kUnit], const float* steps, std::int64_t pitch, float* chroma) {
  for (std::int64_t y = 0; y < kBlock; ++y) {
    const float *const upper = values[2 * y], *const lower = values[2 * y + 1];
    for (std::int64_t x = 0; x < kBlock; ++x) {
      const float sum = (upper[2 * x] + upper[2 * x + 1]) + (lower[2 * x] + lower[2 * x + 1]);
      chroma[y * pitch + x] = round_half_even(0.25f * sum);
    }
  }
  requantize(chroma, pitch, steps);
}

void blocks(const float* image, std::int64_t height, std::int64_t width, const float* luminance,
            const float* chrominance, const JpegPlanes& planes, std::int64_t band) {
  const std::int64_t top = band * kUnit, pitch = planes.width, half = planes.width / 2;
  for (std::int64_t left = 0; left < planes.width; left += kUnit) {
    float red[kUnit][kUnit], green[kUnit][kUnit], blue[kUnit][kUnit], blueness[kUnit][kUnit], redness[kUnit][kUnit];
    fetch(image, height, width, top, left, red);
    fetch(image + height * width, height, width, top, left, green);
    fetch(image + 2 * height * width, height, width, top, left, blue);
    float* const luma = planes.luma + top * pitch + left;
    for (std::int64_t y = 0; y < kUnit; ++y) {
      for (std::int64_t x = 0; x < kUnit; ++x) {
        const float r = 255.0f * red[y][x], g = 255.0f * green[y][x], b = 255.0f * blue[y][x];
        luma[y * pitch + x] = round_half_even(mix(kLuma, r, g, b)) - 128.0f;
        blueness[y][x] = round_half_even(mix(kBlue, r, g, b));
        redness[y][x] = round_half_even(mix(kRed, r, g, b));
      }
    }
    for (std::int64_t y = 0; y < kUnit; y += kBlock) {
      for (std::int64_t x = 0; x < kUnit; x += kBlock) requantize(luma + y * pitch + x, pitch, luminance);
    }
    const std::int64_t place = band * kBlock * half + left / 2;
    store_chroma(blueness, chrominance, half, planes.blue + place);
    store_chroma(redness, chrominance, half, planes.red + place);
  }
}

// Twice the columns of 3/4 of a row and 1/4 of another, by the same triangle filter; from column `left` of `count`.
SHADE_FAST_PIXEL void enlarge(const float* near, const float* far, std::int64_t left, std::int64_t count,
                              std::int64_t columns, float* result) {
  float blended[kTile + 2];
  for (std::int64_t j = 0; j < count; ++j) blended[j + 1] = 0.75f * near[left + j] + 0.25f * far[left + j];
  const std::int64_t before = left > 0 ? left - 1 : 0, after = at_most(left + count, columns - 1);
  blended[0] = 0.75f * near[before] + 0.25f * far[before];
  blended[count + 1] = 0.75f * near[after] + 0.25f * far[after];
  for (std::int64_t j = 0; j < count; ++j) {
    result[2 * j] = 0.25f * blended[j] + 0.75f * blended[j + 1];
    result[2 * j + 1] = 0.75f * blended[j + 1] + 0.25f * blended[j + 2];
  }
}

// The adjoint of `enlarge` and of its rows: column `left` on of the chroma row between four rows of full resolution.
SHADE_FAST_PIXEL void shrink(const float* above, const float* upper, const float* lower, const float* below,
                             std::int64_t left, std::int64_t count, std::int64_t columns, float* result) {
  float blended[2 * kTile + 2];
  const auto blend = [&](std::int64_t x) { return 0.75f * (upper[x] + lower[x]) + 0.25f * (above[x] + below[x]); };
  for (std::int64_t x = 0; x < 2 * count; ++x) blended[x + 1] = blend(2 * left + x);
  blended[0] = blend(left > 0 ? 2 * left - 1 : 0);
  blended[2 * count + 1] = blend(at_most(2 * (left + count), 2 * columns - 1));
  for (std::int64_t j = 0; j < count; ++j) {
    const float inner = blended[2 * j + 1] + blended[2 * j + 2], outer = blended[2 * j] + blended[2 * j + 3];
    result[left + j] = 0.75f * inner + 0.25f * outer;
  }
}

void show(const JpegPlanes& planes, std::int64_t height, std::int64_t width, float* result, std::uint8_t* inside,
          std::int64_t y) {
  const std::int64_t half = planes.width / 2, last = planes.height / 2 - 1, near = y / 2;
  const std::int64_t far = y % 2 == 0 ? (near > 0 ? near - 1 : 0) : at_most(near + 1, last);
  const std::int64_t plane = height * width;
  for (std::int64_t left = 0; 2 * left < width; left += kTile) {
    const std::int64_t count = at_most(kTile, half - left), pixels = at_most(2 * count, width - 2 * left);
    float blue[2 * kTile], red[2 * kTile];
    enlarge(planes.blue + near * half, planes.blue + far * half, left, count, half, blue);
    enlarge(planes.red + near * half, planes.red + far * half, left, count, half, red);
    const float* const luma = planes.luma + y * planes.width + 2 * left;
    float* const shown = result + y * width + 2 * left;
    std::uint8_t* const kept = inside + y * width + 2 * left;
    for (std::int64_t x = 0; x < pixels; ++x) {
      const float brightness = luma[x] + 128.0f;
      const float values[3] = {
          round_half_even(brightness + kRedOfRed * red[x]),
          round_half_even(brightness + (kGreenOfBlue * blue[x] + kGreenOfRed * red[x])),
          round_half_even(brightness + kBlueOfBlue * blue[x]),
      };
      for (int c = 0; c < 3; ++c) {
        const float bounded = clamp(values[c], 0.0f, 255.0f);
        shown[c * plane + x] = bounded / 255.0f;
        kept[c * plane + x] = bounded == values[c] ? 1 : 0;
      }
    }
  }
}

void gradient_planes(const float* gradient, const std::uint8_t* inside, std::int64_t height, std::int64_t width,
                     const JpegPlanes& planes, std::int64_t y) {
  float *const luma = planes.luma + y * planes.width, *const blue = planes.blue + y * planes.width,
               *const red = planes.red + y * planes.width;
  const std::int64_t plane = height * width, pixels = y < height ? width : 0;
  const float* const from = gradient + y * width;
  const std::uint8_t* const kept = inside + y * width;
  for (std::int64_t x = 0; x < pixels; ++x) {
    const float r = from[x] * kept[x], g = from[plane + x] * kept[plane + x];
    const float b = from[2 * plane + x] * kept[2 * plane + x];
    luma[x] = (r + g) + b;
    blue[x] = kGreenOfBlue * g + kBlueOfBlue * b;
    red[x] = kRedOfRed * r + kGreenOfRed * g;
  }
  for (std::int64_t x = pixels; x < planes.width; ++x) luma[x] = blue[x] = red[x] = 0.0f;
}

void gradient_chroma(const JpegPlanes& planes, float* blue, float* red, std::int64_t row) {
  const std::int64_t pitch = planes.width, half = planes.width / 2, last = planes.height - 1;
  const std::int64_t above = row > 0 ? 2 * row - 1 : 0, below = at_most(2 * row + 2, last);
  const auto both = [&](const float* plane, float* result) {
    const float *const upper = plane + 2 * row * pitch, *const lower = upper + pitch;
    for (std::int64_t left = 0; left < half; left += kTile) {
      shrink(plane + above * pitch, upper, lower, plane + below * pitch, left, at_most(kTile, half - left), half,
             result + row * half);
    }
  };
  both(planes.blue, blue);
  both(planes.red, red);
}

void gradient_show(const float* luma, const float* blue, const float* red, std::int64_t padded, std::int64_t width,
                   std::int64_t plane, bool accumulate, float* result) {
  const auto value = [&](int c, std::int64_t x) {
    return (kLuma[c] * luma[x] + kBlue[c] * (0.25f * blue[x / 2])) + kRed[c] * (0.25f * red[x / 2]);
  };
  for (int c = 0; c < 3; ++c) {
    float* const to = result + c * plane;
    if (!accumulate) {
      for (std::int64_t x = 0; x < width; ++x) to[x] = value(c, x);
    } else {
      for (std::int64_t x = 0; x < width; ++x) to[x] += value(c, x);
    }
    for (std::int64_t x = width; x < padded; ++x) to[width - 1] += value(c, x);
  }
}

}  // namespace

const JpegKernels jpeg = {blocks, show, gradient_planes, gradient_chroma, gradient_show};

}  // namespace shade_fast::cpu::SHADE_FAST_ISA
