// What the launchers share: the block size, a launch whose status is looked at, and the limits of its grid.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "../shade_fast.h"

namespace shade_fast::cuda {

constexpr int kThreads = 256;
// CUDA's limit on gridDim.y, which counts the images.
constexpr std::int64_t kMostImages = 65535;

// Status::ok, or cuda_failure, whose text last_error() gives.
Status status_of(cudaError_t error);

// Queues kernel(arguments...) on a cudaStream_t: `blocks` blocks of kThreads threads for each image.
template <typename... Parameters, typename... Arguments>
Status launch(void (*kernel)(Parameters...), std::int64_t blocks, std::int64_t images, void* stream,
              Arguments... arguments) {
  cudaLaunchConfig_t shape = {};
  shape.gridDim = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(images));
  shape.blockDim = dim3(kThreads);
  shape.stream = static_cast<cudaStream_t>(stream);
  return status_of(cudaLaunchKernelEx(&shape, kernel, static_cast<Parameters>(arguments)...));
}

// Blocks that share `elements` values of an image, `each` for a thread where there are enough.
inline std::int64_t blocks_for(std::int64_t elements, std::int64_t each) {
  constexpr std::int64_t kMostBlocks = 1 << 16;
  const std::int64_t blocks = (elements + kThreads * each - 1) / (kThreads * each);
  return blocks < kMostBlocks ? blocks : kMostBlocks;
}

}  // namespace shade_fast::cuda
