// shade_fast._cuda: the CUDA half of shade_fast.h for Python. Pointers and streams are integers. The CUDA runtime is
// linked in, so that the module imports on a machine without a GPU or a driver.
#include <pybind11/pybind11.h>

#include <cstdint>

#include "shade_fast.h"

namespace py = pybind11;
using shade_fast::Status;

namespace {

template <typename T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

int optimizer_update(std::uintptr_t delta, std::uintptr_t momentum, std::uintptr_t gradient, std::uintptr_t clean,
                     std::uintptr_t step, std::uintptr_t mean, std::uintptr_t scratch, std::int64_t images,
                     std::int64_t elements, float decay, float linf, std::uintptr_t stream) {
  return static_cast<int>(shade_fast::cuda::optimizer_update(
      pointer<float>(delta), pointer<float>(momentum), pointer<const float>(gradient),
      pointer<const std::uint8_t>(clean), pointer<const float>(step), pointer<float>(mean), pointer<double>(scratch),
      images, elements, decay, linf, pointer<void>(stream)));
}

int quantize(std::uintptr_t clean, std::uintptr_t delta, std::uintptr_t scale, std::uintptr_t result,
             std::int64_t images, std::int64_t elements, int levels, std::uintptr_t stream) {
  return static_cast<int>(shade_fast::cuda::quantize(
      pointer<const std::uint8_t>(clean), pointer<const float>(delta), pointer<const float>(scale),
      pointer<std::uint8_t>(result), images, elements, levels, pointer<void>(stream)));
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "The CUDA kernels of shade_fast; shade_fast.ops is their Python interface.";
  const auto released = py::call_guard<py::gil_scoped_release>();
  module.def("optimizer_update", &optimizer_update, released);
  module.def("optimizer_update_scratch", &shade_fast::cuda::optimizer_update_scratch);
  module.def("quantize", &quantize, released);
  module.def("status_message", [](int status) -> py::str {
    const auto code = static_cast<Status>(status);
    return code == Status::cuda_failure ? shade_fast::cuda::last_error() : shade_fast::describe(code);
  });
  module.attr("architectures") = SHADE_FAST_CUDA_ARCHITECTURES;
  module.attr("compiler") = SHADE_FAST_NVCC;
}
