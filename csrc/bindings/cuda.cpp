// shade_fast._cuda: the CUDA half of shade_fast.h for Python. Streams are integers too. The CUDA runtime is linked in, so
// that the module imports on a machine without a GPU or a driver.
#include "wrap.h"

namespace py = pybind11;
namespace cuda = shade_fast::cuda;

PYBIND11_MODULE(_cuda, module) {
  using shade_fast::Status;
  using shade_fast::bindings::define;
  module.doc() = "The CUDA kernels of shade_fast; shade_fast.ops is their Python interface.";

  define<&cuda::optimizer_update>(module, "optimizer_update");
  define<&cuda::optimizer_update_scratch>(module, "optimizer_update_scratch");
  define<&cuda::quantize>(module, "quantize");
  define<&cuda::bisect_scale>(module, "bisect_scale");

  module.def("status_message", [](int status) -> py::str {
    const auto code = static_cast<Status>(status);
    return code == Status::cuda_failure ? cuda::last_error() : shade_fast::describe(code);
  });
  module.def("driver_version", &cuda::driver_version);
  module.attr("runtime_version") = cuda::runtime_version();
  module.attr("architectures") = SHADE_FAST_CUDA_ARCHITECTURES;
  module.attr("compiler") = SHADE_FAST_NVCC;
}
