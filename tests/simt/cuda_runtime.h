// Stands in for CUDA's header where kernels are to run on the host, for tests: a thread of the CPU for each thread of a
// block, one block after the other, shared memory a static array. Slow, and no model of time; but barriers, warp
// shuffles and atomics order memory as they do on a GPU, and nothing else does, so that ThreadSanitizer sees what is
// missing. A launch ends in an error where threads of a block leave while others wait at a barrier.
#pragma once

#include <cmath>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

using cudaStream_t = struct CUstream_st*;

enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorLaunchFailure = 719 };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  void* attrs = nullptr;
  unsigned numAttrs = 0;
};

inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace simt {

constexpr unsigned kWarp = 32;

// Where `count` threads wait for each other; one that leaves is waited for no longer.
class Barrier {
 public:
  explicit Barrier(unsigned count) : present_(count) {}

  void wait() {
    std::unique_lock lock(mutex_);
    if (++waiting_ == present_) return open();
    const unsigned long round = round_;
    opened_.wait(lock, [&] { return round_ != round; });
  }

  // Whether others were waiting, who would have waited for ever.
  bool leave() {
    const std::lock_guard lock(mutex_);
    --present_;
    const bool awaited = waiting_ > 0;
    if (awaited && waiting_ == present_) open();
    return awaited;
  }

 private:
  void open() {
    waiting_ = 0;
    ++round_;
    opened_.notify_all();
  }

  std::mutex mutex_;
  std::condition_variable opened_;
  unsigned present_, waiting_ = 0;
  unsigned long round_ = 0;
};

struct Warp {
  explicit Warp(unsigned count) : barrier(count) {}
  Barrier barrier;
  std::uint64_t values[kWarp] = {};
};

inline thread_local Barrier* block_barrier = nullptr;
inline thread_local Warp* warp = nullptr;
inline thread_local cudaError_t last_error = cudaSuccess;

inline unsigned lane() { return threadIdx.x % kWarp; }

template <typename T>
T exchanged(T own, unsigned from) {
  static_assert(sizeof(T) <= sizeof(std::uint64_t));
  std::memcpy(&warp->values[lane()], &own, sizeof own);
  warp->barrier.wait();
  if (from < kWarp) std::memcpy(&own, &warp->values[from], sizeof own);
  warp->barrier.wait();
  return own;
}

// One block: `threads` threads that call kernel().
template <typename Kernel>
bool run_block(dim3 block, dim3 place, dim3 grid, const Kernel& kernel) {
  const unsigned threads = block.x * block.y * block.z;
  Barrier barrier(threads);
  std::vector<Warp*> warps;
  for (unsigned first = 0; first < threads; first += kWarp) {
    warps.push_back(new Warp(threads - first < kWarp ? threads - first : kWarp));
  }
  std::vector<char> deserted(threads, 0);
  std::vector<std::thread> running;
  for (unsigned number = 0; number < threads; ++number) {
    running.emplace_back([&, number] {
      threadIdx = dim3(number % block.x, number / block.x % block.y, number / block.x / block.y);
      blockIdx = place;
      blockDim = block;
      gridDim = grid;
      block_barrier = &barrier;
      warp = warps[number / kWarp];
      kernel();
      const bool of_warp = warp->barrier.leave();
      deserted[number] = barrier.leave() || of_warp;
    });
  }
  for (std::thread& one : running) one.join();
  for (Warp* one : warps) delete one;
  for (const char one : deserted) {
    if (one) return false;
  }
  return true;
}

}  // namespace simt

inline void __stwb(uint4* to, uint4 value) { *to = value; }

inline void __syncthreads() { simt::block_barrier->wait(); }
inline void __syncwarp(unsigned = 0xffffffffu) { simt::warp->barrier.wait(); }

template <typename T>
T __shfl_down_sync(unsigned, T value, unsigned distance) {
  return simt::exchanged(value, simt::lane() + distance);
}

template <typename T>
T __shfl_xor_sync(unsigned, T value, int mask) {
  return simt::exchanged(value, simt::lane() ^ static_cast<unsigned>(mask));
}

template <typename T, typename Change>
T simt_atomic(T* address, Change change) {
  T before;
  __atomic_load(address, &before, __ATOMIC_RELAXED);
  T after = change(before);
  while (!__atomic_compare_exchange(address, &before, &after, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    after = change(before);
  }
  return before;
}

template <typename T>
T atomicAdd(T* address, T value) {
  return simt_atomic(address, [&](T before) { return before + value; });
}

template <typename T>
T atomicMax(T* address, T value) {
  return simt_atomic(address, [&](T before) { return before < value ? value : before; });
}

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = simt::last_error;
  simt::last_error = cudaSuccess;
  return error;
}

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "no error";
    case cudaErrorInvalidConfiguration: return "invalid configuration argument";
    case cudaErrorLaunchFailure: return "threads of a block left while others waited at a barrier";
  }
  return "unrecognized error code";
}

#define CUDART_VERSION 13000

inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* memory, int value, std::size_t bytes, cudaStream_t) {
  std::memset(memory, value, bytes);
  return cudaSuccess;
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* shape, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const dim3 grid = shape->gridDim, block = shape->blockDim;
  const std::size_t threads = std::size_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > 1024 || grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) {
    return simt::last_error = cudaErrorInvalidConfiguration;
  }
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        if (!simt::run_block(block, dim3(x, y, z), grid, [&] { kernel(arguments...); })) {
          return simt::last_error = cudaErrorLaunchFailure;
        }
      }
    }
  }
  return cudaSuccess;
}
