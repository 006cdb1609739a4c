// The emulation itself: that its shared memory, barriers, shuffles and atomics do what kernels count on, and that what
// is wrong with a launch is reported.
#include <cstdio>
#include <cstring>

#include "../../csrc/cuda/launch.h"

namespace {

using shade_fast::Status;
using shade_fast::cuda::kThreads;
using shade_fast::cuda::launch;

int failures = 0;

void expect(bool held, const char* what) {
  if (held) return;
  std::printf("%s\n", what);
  ++failures;
}

__global__ void reverse(int* values) {
  __shared__ int shared[kThreads];
  int* own = values + blockIdx.x * kThreads;
  shared[threadIdx.x] = own[threadIdx.x];
  __syncthreads();
  own[threadIdx.x] = shared[kThreads - 1 - threadIdx.x];
}

__global__ void sums(int* down, int* both) {
  int sum = static_cast<int>(threadIdx.x), all = sum;
  for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_down_sync(0xffffffffu, sum, distance);
  for (int mask = 16; mask > 0; mask /= 2) all += __shfl_xor_sync(0xffffffffu, all, mask);
  if (threadIdx.x % 32 == 0) down[threadIdx.x / 32] = sum;
  both[threadIdx.x] = all;
}

__global__ void count(float* total, int* largest) {
  atomicAdd(total, 1.0f);
  atomicMax(largest, static_cast<int>(blockIdx.y * 1000 + threadIdx.x));
}

__global__ void half_waits(int* values) {
  if (threadIdx.x % 2 == 0) __syncthreads();
  values[threadIdx.x] = 1;
}

}  // namespace

int main() {
  int values[2 * kThreads];
  for (int i = 0; i < 2 * kThreads; ++i) values[i] = i;
  expect(launch(reverse, 2, 1, nullptr, values) == Status::ok, "reverse is launched");
  for (int i = 0; i < kThreads; ++i) {
    expect(values[i] == kThreads - 1 - i && values[kThreads + i] == 2 * kThreads - 1 - i, "blocks are reversed");
  }

  int down[kThreads / 32], both[kThreads];
  expect(launch(sums, 1, 1, nullptr, down, both) == Status::ok, "sums is launched");
  for (int i = 0; i < kThreads; ++i) {
    const int sum = 32 * (i / 32 * 32) + 31 * 16;
    expect(both[i] == sum && down[i / 32] == sum, "warps are summed up");
  }

  float total = 0.0f;
  int largest = -1;
  expect(launch(count, 2, 3, nullptr, &total, &largest) == Status::ok, "count is launched");
  expect(total == 6.0f * kThreads && largest == 2000 + kThreads - 1, "every thread counts");

  expect(launch(reverse, 0, 1, nullptr, values) == Status::cuda_failure, "no blocks are an error");
  expect(std::strcmp(shade_fast::cuda::last_error(), "invalid configuration argument") == 0, "which has its text");
  expect(cudaGetLastError() == cudaSuccess, "and is reported once");
  expect(launch(half_waits, 1, 1, nullptr, values) == Status::cuda_failure, "a barrier that half a block reaches");
  return failures;
}
