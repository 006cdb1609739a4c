// The whole interface of the compiled modules: raw pointers, sizes, a thread count or a stream; no torch, no exceptions.
//
// Every image is independent of the others in a call, and all arrays are dense. Pointers may be null where they point to
// nothing. Ops on pixels take `images` images of `elements` values each (3 * height * width) in any one memory order:
// they never look at neighbours.
#pragma once

#include <cstdint>

namespace shade_fast {

enum class Status : int {
  ok = 0,
  bad_argument = 1,
  out_of_memory = 2,
  unknown_isa = 3,
  unsupported_isa = 4,
  cuda_failure = 5,
};

constexpr const char* describe(Status status) {
  switch (status) {
    case Status::ok: return "ok";
    case Status::bad_argument: return "a size or a parameter is out of range";
    case Status::out_of_memory: return "out of memory";
    case Status::unknown_isa: return "no such instruction set in this build";
    case Status::unsupported_isa: return "this machine lacks the instruction set";
    case Status::cuda_failure: return "CUDA reported an error";
  }
  return "unknown status";
}

// What an image's values are taken to, each of its three channels in its own way: gain * value + offset.
struct Affine {
  float gain[3];
  float offset[3];
};

// Where the largest scale lies that holds a bound: `low` holds it, `high` does not (or is where the search began), and
// `scale` is tried next.
struct Interval {
  float low, high, scale;
};

namespace cpu {

// The instruction set whose kernels run: the widest that this machine has, until another is selected by name.
Status select_isa(const char* name);
const char* selected_isa();

// Every instruction set in this build, widest first; null past the end.
const char* built_isa(int index);

// mean[i] = mean |gradient| of image i (summed in double, over blocks of fixed size, whatever the thread count).
// Where it is finite: momentum = decay * momentum + gradient / mean, delta -= step[i] * share / 64 * sign(momentum),
// then delta is clamped to [-linf, linf] and clean / 255 + delta to [0, 1]. Where it is not, delta and momentum stay as
// they are. share may be null (64).
Status optimizer_update(float* delta, float* momentum, const float* gradient, const std::uint8_t* clean,
                        const std::uint8_t* share, const float* step, float* mean, std::int64_t images,
                        std::int64_t elements, float decay, float linf, int threads);

// result = clamp(clean + clamp(round_half_even(255 * scale[i] * delta), -levels, levels), 0, 255); NaN counts as 0.
Status quantize(const std::uint8_t* clean, const float* delta, const float* scale, std::uint8_t* result,
                std::int64_t images, std::int64_t elements, int levels, int threads);

// A banded matrix: row i holds `taps` weights, for the columns from start[i] on; start[i] + taps <= columns.
struct Band {
  const std::int32_t* start;
  const float* weights;  // [rows, taps] for the vertical band, [taps, rows] for the horizontal one
  std::int64_t rows;
  std::int64_t columns;
  std::int64_t taps;
};

// result = vertical * plane * transpose(horizontal) for each of `planes` planes [vertical.columns, horizontal.columns],
// whose results are [vertical.rows, horizontal.rows]. The shorter of the two ways round is taken; `scratch` holds
// resize_scratch(...) floats. An element's sums run in a fixed order, whatever the thread count.
Status resize(const float* images, float* result, float* scratch, std::int64_t planes, Band vertical, Band horizontal,
              int threads);
std::int64_t resize_scratch(std::int64_t planes, const Band& vertical, const Band& horizontal);

// What a JPEG file with these tables shows of images [count, 3, height, width] in [0, 1], in [0, 1], colours at half
// the resolution; inside[i]: whether a value needed no clamping. Tables are [frequency across, frequency down]. Sides
// that are no multiple of 16 are continued with their edge's pixels. jpeg_gradient: the gradient in the images, as if
// nothing were rounded. `scratch` holds jpeg_scratch(height, width) floats.
Status jpeg(const float* images, const float* luminance, const float* chrominance, float* result, std::uint8_t* inside,
            float* scratch, std::int64_t count, std::int64_t height, std::int64_t width, int threads);
Status jpeg_gradient(const float* gradient, const std::uint8_t* inside, float* result, float* scratch,
                     std::int64_t count, std::int64_t height, std::int64_t width, int threads);
std::int64_t jpeg_scratch(std::int64_t height, std::int64_t width);

// ---- Frozen networks: channels-last (NHWC) float32, forward and the gradient in the input alone -------------------
//
// A mask holds one bit for each value of a tensor [images, height, width, channels]: for each pixel
// ceil(channels / 16) words, channel c in bit c % 16 of word c / 16; bits past the last channel are 0.

// A convolution with frozen weights, or the data gradient of one:
//   result[n, y, x, k] = sum over c, i, j of weights[k, c, i, j] * input[n, v, u, c],
//   v = (y * stride + i - pad_top) / up, u = (x * stride + j - pad_left) / up, where both are whole and inside.
// The data gradient of (stride s, up 1, pad p) is (stride 1, up s, pad kernel - 1 - p) with the channels and filters
// exchanged and the kernel rotated by half a turn. One of stride and up is 1.
struct Convolution {
  std::int64_t images, height, width, channels;
  std::int64_t out_height, out_width, filters;
  std::int64_t kernel_height, kernel_width, stride, up, pad_top, pad_left;
};

// What becomes of each value before it is stored; a null pointer leaves its part out. In this order:
//   value += bias[k];  value += residual[i];  positive bit i = value > 0;  relu: value = max(value, 0);
//   value = 0 where gate bit i is 0.
// residual may be the result itself, and then the call accumulates.
struct Epilogue {
  const float* bias;
  const float* residual;
  std::uint16_t* positive;
  bool relu;
  const std::uint16_t* gate;
};

// direct: a sum in float32 as written. narrow: the same, for few filters (1 to 8), vectors along the channels.
// winograd2, 4, 6: F(2x2), F(4x4), F(6x6) of 3x3 kernels, stride 1, up 1 (arXiv 1509.09308).
// tiles: a sum as written, of products of bfloat16s: three for each of float32; where the instruction set is "amx".
enum class Algorithm : int { direct = 0, narrow = 1, winograd2 = 2, winograd4 = 4, winograd6 = 6, tiles = 10 };

bool supports(Algorithm algorithm, const Convolution& convolution);

// Floats that the packed weights take; 0 where the algorithm does not support the convolution. The layout is that of
// the selected instruction set and does not depend on images, height and width.
std::int64_t packed_weights_size(Algorithm algorithm, const Convolution& convolution);
// weights: [filters, channels, kernel_height, kernel_width]. Transformed in float64; of tiles, pairs of bfloat16s.
Status pack_weights(Algorithm algorithm, const Convolution& convolution, const float* weights, float* packed);

// Floats of scratch memory for at most `threads` threads.
std::int64_t convolution_scratch(Algorithm algorithm, const Convolution& convolution, int threads);
Status convolve(Algorithm algorithm, const Convolution& convolution, const float* packed, const float* input,
                float* result, const Epilogue& epilogue, float* scratch, int threads);

// A matrix whose value (i, j) lies at values[i * row_step + j * column_step]; one of the steps is 1.
struct Matrix {
  const float* values;
  std::int64_t row_step, column_step;
};

// result[i * result_step + j] = factor * sum over k < depth of left[i, k] * right[k, j] (+ what is there: accumulate).
// A row's sums run in a fixed order, whatever the other rows and the thread count.
struct MatrixProduct {
  Matrix left, right;
  float* result;
  std::int64_t result_step, rows, depth, columns;
  float factor;
  bool accumulate;
};

// scratch: matrix_product_scratch(...) floats.
// algorithm: direct, or tiles where the instruction set is "amx".
bool supports_product(Algorithm algorithm);
std::int64_t matrix_product_scratch(Algorithm algorithm, std::int64_t depth, std::int64_t columns, int threads);
Status matrix_product(Algorithm algorithm, const MatrixProduct& product, float* scratch, int threads);

// The values of one call: `images` images of `pixels` pixels of `channels` channels.
struct Extent {
  std::int64_t images, pixels, channels;
};

enum class Activation : int { none = 0, relu = 1, silu = 2 };

// result = epilogue(a), elementwise: with residual an addition, with relu a ReLU, with gate a ReLU's gradient.
Status epilogue(const float* a, float* result, Extent extent, const Epilogue& epilogue, int threads);

// result = a * sigmoid(a); the gradient takes a, not the result.
Status silu(const float* a, float* result, Extent extent, int threads);
Status silu_gradient(const float* gradient, const float* a, float* result, Extent extent, const Epilogue& epilogue,
                     int threads);

// result = activation(gamma[c] * (input - mean) * inverse_deviation + beta[c]) with mean and 1 / sqrt(variance + epsilon)
// over each group of channels / groups channels of each image; statistics: [images, groups, 2], those two.
// The gradient takes the statistics that the forward wrote. scratch: group_norm_scratch(...) floats.
std::int64_t group_norm_scratch(Extent extent, std::int64_t groups, int threads);
Status group_norm(const float* input, const float* gamma, const float* beta, float* statistics, float* result,
                  Extent extent, std::int64_t groups, float epsilon, Activation activation, float* scratch,
                  int threads);
Status group_norm_gradient(const float* gradient, const float* input, const float* gamma, const float* beta,
                           const float* statistics, float* result, Extent extent, std::int64_t groups,
                           Activation activation, const Epilogue& epilogue, float* scratch, int threads);

// Windows of `kernel` pixels a side, `stride` apart, the first `pad` pixels before the image's corner; what lies outside
// the image counts for nothing (max pooling) or is its mirror image without the edge pixel repeated (blur).
struct Window {
  std::int64_t images, height, width, channels, out_height, out_width;
  std::int64_t kernel, stride, pad;
};

// index: uint8 [images, out_height, out_width, channels], which of a window's kernel * kernel pixels, row by row, is the
// first largest (a NaN counts as the largest); may be null. kernel <= 15.
Status max_pool(const float* input, float* result, std::uint8_t* index, const Window& window, int threads);
Status max_pool_gradient(const float* gradient, const std::uint8_t* index, float* result, const Window& window,
                         const Epilogue& epilogue, int threads);

// result = sum over the window of taps[i * kernel + j] * input, the same taps for every channel; pad < height, width.
Status blur(const float* input, const float* taps, float* result, const Window& window, int threads);
Status blur_gradient(const float* gradient, const float* taps, float* result, const Window& window,
                     const Epilogue& epilogue, int threads);

// unit = activations / (|activations| + 1e-10), the length being over the channels of each pixel.
Status unit_length(const float* activations, float* unit, Extent extent, int threads);
// distance[n] = mean over pixels of sum over c of head[c] * (unit(activations)[c] - clean[c])^2, summed in double over
// blocks of fixed size, whatever the thread count. Its gradient times upstream[n]; 0 at a pixel whose length is 0.
// scratch: lpips_layer_scratch(...) floats, for the distance only.
std::int64_t lpips_layer_scratch(Extent extent);
Status lpips_layer(const float* activations, const float* clean, const float* head, float* distance, Extent extent,
                   float* scratch, int threads);
Status lpips_layer_gradient(const float* activations, const float* clean, const float* head, const float* upstream,
                            float* result, Extent extent, const Epilogue& epilogue, int threads);

// Between NCHW and NHWC, with result = scale[c] * input + shift[c]; scale and shift may be null (1 and 0).
Status to_channels_last(const float* input, const float* scale, const float* shift, float* result, Extent extent,
                        int threads);
Status to_channels_first(const float* input, const float* scale, const float* shift, float* result, Extent extent,
                         int threads);

}  // namespace cpu

namespace cuda {

// How many doubles of scratch memory optimizer_update needs; 0 where a size is out of range.
std::int64_t optimizer_update_scratch(std::int64_t images, std::int64_t elements);

// As in cpu; all pointers are device memory, and the work is queued on `stream` (a cudaStream_t).
Status optimizer_update(float* delta, float* momentum, const float* gradient, const std::uint8_t* clean,
                        const std::uint8_t* share, const float* step, float* mean, double* scratch,
                        std::int64_t images, std::int64_t elements, float decay, float linf, void* stream);

Status quantize(const std::uint8_t* clean, const float* delta, const float* scale, std::uint8_t* result,
                std::int64_t images, std::int64_t elements, int levels, void* stream);

// next[i] = narrowed(now[i], distance[i], bound, guess), see pixel.h, and then
// result = bfloat16(gain[c] * quantize(clean, delta, next[i].scale, levels) / 255 + offset[c]), each operation rounded on
// its own. The images have three channels next to each other (NHWC): `elements` is a multiple of 3. next and now are not
// the same memory.
Status bisect_scale(const std::uint8_t* clean, const float* delta, const float* distance, const Interval* now,
                    Interval* next, std::uint16_t* result, std::int64_t images, std::int64_t elements, float bound,
                    bool guess, int levels, const Affine& affine, void* stream);

// What CUDA said of the last call on this thread that ended in Status::cuda_failure.
const char* last_error();

// CUDA's version that this was compiled with, and the newest one that the driver knows, 0 without a driver: 1000 times
// the major version and 10 times the minor one.
int runtime_version();
int driver_version();

}  // namespace cuda

}  // namespace shade_fast
