// A run of values as a grid of threads goes through it: 128 bits at a time where memory is aligned, singly elsewhere.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

namespace shade_fast::cuda {

// Values that a thread works on at once: 16 bytes of uint8, twice 16 of bfloat16, four times 16 of float32.
constexpr std::int64_t kGroup = 16;

// 16 bytes of values.
template <typename T>
struct Pack {
  static constexpr int kCount = 16 / sizeof(T);
  T value[kCount];
};

template <typename T>
__device__ __forceinline__ Pack<T> read(const T* from) {
  const uint4 bits = *reinterpret_cast<const uint4*>(from);
  Pack<T> pack;
  memcpy(&pack, &bits, sizeof bits);
  return pack;
}

template <typename T>
__device__ __forceinline__ void write(T* to, const Pack<T>& pack) {
  uint4 bits;
  memcpy(&bits, &pack, sizeof bits);
  // Of a plain assignment nvcc makes several narrow stores where it has taken the values apart.
  __stwb(reinterpret_cast<uint4*>(to), bits);
}

// Whether each kGroup-th value of all these arrays starts at a multiple of 16 bytes; null pointers do not count.
template <typename... T>
bool aligned(const T*... arrays) {
  return ((reinterpret_cast<std::uintptr_t>(arrays) % 16 == 0) && ...);
}

// For values [begin, end) of arrays, thread `thread` of `threads`: group(i) for kGroup values from i on, a multiple of
// kGroup, and one(i) for those before the first and behind the last whole group; one(i) for all where !kVector.
template <bool kVector, typename Group, typename One>
__device__ __forceinline__ void over_values(std::int64_t begin, std::int64_t end, std::int64_t thread,
                                            std::int64_t threads, Group group, One one) {
  if constexpr (kVector) {
    const std::int64_t first = (begin + kGroup - 1) / kGroup * kGroup;
    const std::int64_t last = end / kGroup * kGroup;
    if (first < last) {
      for (std::int64_t i = first + kGroup * thread; i < last; i += kGroup * threads) group(i);
      if (begin + thread < first) one(begin + thread);
      if (last + thread < end) one(last + thread);
      return;
    }
  }
  for (std::int64_t i = begin + thread; i < end; i += threads) one(i);
}

}  // namespace shade_fast::cuda
