// What the launchers share: the block size, the checks around a launch, and the loop over an image's values.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../shade_fast.h"

namespace shade_fast::cuda {

constexpr int kThreads = 256;
// CUDA's limit on gridDim.y, which counts the images.
constexpr std::int64_t kMostImages = 65535;

void remember_error(cudaError_t error);

// To be called right after a launch.
inline Status launch_status() {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return Status::ok;
  remember_error(error);
  return Status::cuda_failure;
}

// Whether four values at a time can be read from each image: 16 bytes of float32, 4 of uint8.
inline bool vector_aligned(const void* floats, std::int64_t elements) {
  return elements % 4 == 0 && reinterpret_cast<std::uintptr_t>(floats) % 16 == 0;
}

inline bool byte_vector_aligned(const void* bytes) { return reinterpret_cast<std::uintptr_t>(bytes) % 4 == 0; }

}  // namespace shade_fast::cuda
