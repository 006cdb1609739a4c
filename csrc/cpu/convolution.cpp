// Convolutions with frozen weights: check the arguments, cut the work into tasks, share them out to threads.
#include "convolution.h"

#include <algorithm>
#include <atomic>
#include <new>

#include "isa.h"
#include "pack.h"
#include "threads.h"

namespace shade_fast::cpu {
namespace {

struct Kernels {
  decltype(&portable::panel_width) panel_width;
  decltype(&portable::direct) direct;
};

const Kernels kKernels[kIsas] = {
#if defined(SHADE_FAST_X86)
    {avx512::panel_width, avx512::direct},
    {avx2::panel_width, avx2::direct},
#endif
    {portable::panel_width, portable::direct},
};

// Operations for which a further thread is worth its waking.
constexpr double kOperationsPerThread = 1e6;

bool is_sound(const Convolution& c) {
  return c.images >= 0 && c.height >= 0 && c.width >= 0 && c.channels >= 1 && c.out_height >= 0 && c.out_width >= 0 &&
         c.filters >= 1 && c.kernel_height >= 1 && c.kernel_width >= 1 && c.stride >= 1 && c.up >= 1 &&
         (c.stride == 1 || c.up == 1);
}

float* aligned(float* scratch) {
  return reinterpret_cast<float*>(round_up(reinterpret_cast<std::intptr_t>(scratch), 64));
}

std::int64_t worthwhile_threads(const Convolution& c, int threads) {
  const double operations = static_cast<double>(c.images * c.out_height * c.out_width * c.filters) *
                            static_cast<double>(c.kernel_height * c.kernel_width * c.channels) /
                            static_cast<double>(c.up * c.up);
  return std::clamp<std::int64_t>(static_cast<std::int64_t>(operations / kOperationsPerThread), 1, threads);
}

// Calls work(task, scratch) for every task; `slice` floats of scratch memory belong to each thread.
template <typename Work>
void share_out(std::int64_t tasks, std::int64_t threads, float* scratch, std::int64_t slice, const Work& work) {
  std::atomic<std::int64_t> next{0};
  const std::int64_t sharers = std::min(tasks, threads);
  parallel_for(sharers, 1, static_cast<int>(sharers), [&](std::int64_t sharer) {
    for (std::int64_t task = next++; task < tasks; task = next++) work(task, scratch + sharer * slice);
  });
}

std::int64_t direct_scratch(const Convolution& c) { return kDirectPixels * (round_up(c.filters, 16) + kDirectDepth); }

void run_direct(const Kernels& kernels, const Call& call, float* scratch, int threads) {
  const Convolution& c = call.convolution;
  const std::int64_t sharers = worthwhile_threads(c, threads);
  for (std::int64_t index = 0; index < phases(c); ++index) {
    const Phase part = phase(c, index);
    const std::int64_t pixels = part.pixels(c);
    const std::int64_t tasks = std::min(pixels, round_up(ceil_div(pixels, kDirectPixels), sharers));
    share_out(tasks, sharers, scratch, direct_scratch(c), [&](std::int64_t task, float* own) {
      const std::int64_t first = pixels * task / tasks;
      kernels.direct(call, part, first, pixels * (task + 1) / tasks - first, own);
    });
  }
}

}  // namespace

bool supports(Algorithm algorithm, const Convolution& c) {
  if (!is_sound(c)) return false;
  switch (algorithm) {
    case Algorithm::direct: return true;
    case Algorithm::narrow: return false;
    case Algorithm::winograd2:
    case Algorithm::winograd4:
    case Algorithm::winograd6: return false;
  }
  return false;
}

std::int64_t packed_weights_size(Algorithm algorithm, const Convolution& c) {
  if (!supports(algorithm, c)) return 0;
  return round_up(c.filters, 16) * c.channels * c.kernel_height * c.kernel_width;
}

Status pack_weights(Algorithm algorithm, const Convolution& c, const float* weights, float* packed) {
  if (!supports(algorithm, c) || weights == nullptr || packed == nullptr) return Status::bad_argument;
  pack_direct(c, selected(kKernels).panel_width(), weights, packed);
  return Status::ok;
}

std::int64_t convolution_scratch(Algorithm algorithm, const Convolution& c, int threads) {
  if (!supports(algorithm, c) || threads < 1) return 0;
  return direct_scratch(c) * threads + 16;
}

Status convolve(Algorithm algorithm, const Convolution& c, const float* packed, const float* input, float* result,
                const Finish& finish, float* scratch, int threads) try {
  if (!supports(algorithm, c) || threads < 1) return Status::bad_argument;
  const std::int64_t results = c.images * c.out_height * c.out_width;
  if (results == 0) return Status::ok;
  const bool reads = c.height * c.width > 0;
  if (packed == nullptr || result == nullptr || scratch == nullptr || (reads && input == nullptr)) {
    return Status::bad_argument;
  }
  const Call call{c, packed, input, result, finish};
  run_direct(selected(kKernels), call, aligned(scratch), threads);
  return Status::ok;
} catch (const std::bad_alloc&) {
  return Status::out_of_memory;
}

}  // namespace shade_fast::cpu
