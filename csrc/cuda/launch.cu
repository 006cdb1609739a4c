#include "launch.h"

namespace shade_fast::cuda {
namespace {

thread_local const char* last_error_text = "no error";

}  // namespace

Status status_of(cudaError_t error) {
  if (error == cudaSuccess) return Status::ok;
  last_error_text = cudaGetErrorString(error);
  cudaGetLastError();  // reported; whoever launches next is not to find it
  return Status::cuda_failure;
}

const char* last_error() { return last_error_text; }

int runtime_version() { return CUDART_VERSION; }

int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

}  // namespace shade_fast::cuda
