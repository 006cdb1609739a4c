// The whole interface of the compiled modules: raw pointers, sizes, a thread count or a stream; no torch, no exceptions.
//
// Images: `images` of them, `elements` values each (3 * height * width), one after another without gaps. All arrays of
// one call share one memory order (NCHW or NHWC); these ops never look at neighbours, so they need not know which.
// Every image is independent of the others in the call. Pointers may be null where images * elements is 0.
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

namespace cpu {

// The instruction set whose kernels run: the widest that this machine has, until another is selected by name.
Status select_isa(const char* name);
const char* selected_isa();

// Every instruction set in this build, widest first; null past the end.
const char* built_isa(int index);

// mean[i] = mean |gradient| of image i (summed in double, over blocks of fixed size, whatever the thread count).
// Where it is finite: momentum = decay * momentum + gradient / mean, delta -= step[i] * sign(momentum), then delta is
// clamped to [-linf, linf] and clean / 255 + delta to [0, 1]. Where it is not, delta and momentum stay as they are.
Status optimizer_update(float* delta, float* momentum, const float* gradient, const std::uint8_t* clean,
                        const float* step, float* mean, std::int64_t images, std::int64_t elements, float decay,
                        float linf, int threads);

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

}  // namespace cpu

namespace cuda {

// How many doubles of scratch memory optimizer_update needs; 0 where a size is out of range.
std::int64_t optimizer_update_scratch(std::int64_t images, std::int64_t elements);

// As in cpu; all pointers are device memory, and the work is queued on `stream` (a cudaStream_t).
Status optimizer_update(float* delta, float* momentum, const float* gradient, const std::uint8_t* clean,
                        const float* step, float* mean, double* scratch, std::int64_t images, std::int64_t elements,
                        float decay, float linf, void* stream);

Status quantize(const std::uint8_t* clean, const float* delta, const float* scale, std::uint8_t* result,
                std::int64_t images, std::int64_t elements, int levels, void* stream);

// What CUDA said of the last call on this thread that ended in Status::cuda_failure.
const char* last_error();

}  // namespace cuda

}  // namespace shade_fast
