#include "launch.h"

namespace shade_fast::cuda {
namespace {

thread_local const char* last_error_text = "no error";

}  // namespace

void remember_error(cudaError_t error) { last_error_text = cudaGetErrorString(error); }

const char* last_error() { return last_error_text; }

}  // namespace shade_fast::cuda
