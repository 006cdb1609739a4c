// shade_fast._cuda: the CUDA half of shade_fast.h for Python. Pointers and streams are integers. The CUDA runtime is
// linked in, so that the module imports on a machine without a GPU or a driver.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>

#include "bindings.h"
#include "shade_fast.h"

namespace py = pybind11;
using shade_fast::Affine;
using shade_fast::Interval;
using shade_fast::Status;
using shade_fast::bindings::pointer;

namespace {

using Three = std::array<float, 3>;

Affine affine(const Three& gain, const Three& offset) {
  return {{gain[0], gain[1], gain[2]}, {offset[0], offset[1], offset[2]}};
}

int optimizer_update(std::uintptr_t delta, std::uintptr_t momentum, std::uintptr_t gradient, std::uintptr_t clean,
                     std::uintptr_t share, std::uintptr_t step, std::uintptr_t mean, std::uintptr_t scratch,
                     std::int64_t images, std::int64_t elements, float decay, float linf, std::uintptr_t stream) {
  return static_cast<int>(shade_fast::cuda::optimizer_update(
      pointer<float>(delta), pointer<float>(momentum), pointer<const float>(gradient),
      pointer<const std::uint8_t>(clean), pointer<const std::uint8_t>(share), pointer<const float>(step),
      pointer<float>(mean), pointer<double>(scratch), images, elements, decay, linf, pointer<void>(stream)));
}

int quantize(std::uintptr_t clean, std::uintptr_t delta, std::uintptr_t scale, std::uintptr_t result,
             std::int64_t images, std::int64_t elements, int levels, std::uintptr_t stream) {
  return static_cast<int>(shade_fast::cuda::quantize(
      pointer<const std::uint8_t>(clean), pointer<const float>(delta), pointer<const float>(scale),
      pointer<std::uint8_t>(result), images, elements, levels, pointer<void>(stream)));
}

int normalize(std::uintptr_t clean, std::uintptr_t delta, std::uintptr_t result, std::int64_t images,
              std::int64_t elements, const Three& gain, const Three& offset, std::uintptr_t stream) {
  return static_cast<int>(shade_fast::cuda::normalize(
      pointer<const std::uint8_t>(clean), pointer<const float>(delta), pointer<std::uint16_t>(result), images, elements,
      affine(gain, offset), pointer<void>(stream)));
}

int denormalize(std::uintptr_t values, std::uintptr_t clean, std::uintptr_t result, std::int64_t images,
                std::int64_t elements, const Three& gain, const Three& offset, int levels, std::uintptr_t stream) {
  return static_cast<int>(shade_fast::cuda::denormalize(
      pointer<const std::uint16_t>(values), pointer<const std::uint8_t>(clean), pointer<std::uint8_t>(result), images,
      elements, affine(gain, offset), levels, pointer<void>(stream)));
}

int bisect_scale(std::uintptr_t clean, std::uintptr_t delta, std::uintptr_t distance, std::uintptr_t now,
                 std::uintptr_t next, std::uintptr_t result, std::int64_t images, std::int64_t elements, float bound,
                 bool guess, int levels, const Three& gain, const Three& offset, std::uintptr_t stream) {
  return static_cast<int>(shade_fast::cuda::bisect_scale(
      pointer<const std::uint8_t>(clean), pointer<const float>(delta), pointer<const float>(distance),
      pointer<const Interval>(now), pointer<Interval>(next), pointer<std::uint16_t>(result), images, elements, bound,
      guess, levels, affine(gain, offset), pointer<void>(stream)));
}

}  // namespace

PYBIND11_MODULE(_cuda, module) {
  module.doc() = "The CUDA kernels of shade_fast; shade_fast.ops is their Python interface.";
  const auto released = py::call_guard<py::gil_scoped_release>();
  module.def("optimizer_update", &optimizer_update, released);
  module.def("optimizer_update_scratch", &shade_fast::cuda::optimizer_update_scratch);
  module.def("quantize", &quantize, released);
  module.def("normalize", &normalize, released);
  module.def("denormalize", &denormalize, released);
  module.def("bisect_scale", &bisect_scale, released);
  module.def("status_message", [](int status) -> py::str {
    const auto code = static_cast<Status>(status);
    return code == Status::cuda_failure ? shade_fast::cuda::last_error() : shade_fast::describe(code);
  });
  module.def("driver_version", &shade_fast::cuda::driver_version);
  module.attr("runtime_version") = shade_fast::cuda::runtime_version();
  module.attr("architectures") = SHADE_FAST_CUDA_ARCHITECTURES;
  module.attr("compiler") = SHADE_FAST_NVCC;
}
