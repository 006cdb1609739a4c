// shade_fast._cpu: the CPU half of shade_fast.h for Python. Pointers are integers; the GIL is released while work runs.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>

#include "bindings.h"
#include "shade_fast.h"

namespace py = pybind11;
using shade_fast::Status;
using shade_fast::bindings::pointer;

namespace {

int optimizer_update(std::uintptr_t delta, std::uintptr_t momentum, std::uintptr_t gradient, std::uintptr_t clean,
                     std::uintptr_t share, std::uintptr_t step, std::uintptr_t mean, std::int64_t images,
                     std::int64_t elements, float decay, float linf, int threads) {
  return static_cast<int>(shade_fast::cpu::optimizer_update(
      pointer<float>(delta), pointer<float>(momentum), pointer<const float>(gradient),
      pointer<const std::uint8_t>(clean), pointer<const std::uint8_t>(share), pointer<const float>(step),
      pointer<float>(mean), images, elements, decay, linf, threads));
}

int quantize(std::uintptr_t clean, std::uintptr_t delta, std::uintptr_t scale, std::uintptr_t result,
             std::int64_t images, std::int64_t elements, int levels, int threads) {
  return static_cast<int>(shade_fast::cpu::quantize(
      pointer<const std::uint8_t>(clean), pointer<const float>(delta), pointer<const float>(scale),
      pointer<std::uint8_t>(result), images, elements, levels, threads));
}

using PyBand = std::tuple<std::uintptr_t, std::uintptr_t, std::int64_t, std::int64_t, std::int64_t>;

shade_fast::cpu::Band band(const PyBand& fields) {
  const auto [start, weights, rows, columns, taps] = fields;
  return {pointer<const std::int32_t>(start), pointer<const float>(weights), rows, columns, taps};
}

int resize(std::uintptr_t images, std::uintptr_t result, std::uintptr_t scratch, std::int64_t planes,
           const PyBand& vertical, const PyBand& horizontal, int threads) {
  return static_cast<int>(shade_fast::cpu::resize(pointer<const float>(images), pointer<float>(result),
                                                  pointer<float>(scratch), planes, band(vertical), band(horizontal),
                                                  threads));
}

int jpeg(std::uintptr_t images, std::uintptr_t luminance, std::uintptr_t chrominance, std::uintptr_t result,
         std::uintptr_t inside, std::uintptr_t scratch, std::int64_t count, std::int64_t height, std::int64_t width,
         int threads) {
  return static_cast<int>(shade_fast::cpu::jpeg(
      pointer<const float>(images), pointer<const float>(luminance), pointer<const float>(chrominance),
      pointer<float>(result), pointer<std::uint8_t>(inside), pointer<float>(scratch), count, height, width, threads));
}

int jpeg_gradient(std::uintptr_t gradient, std::uintptr_t inside, std::uintptr_t result, std::uintptr_t scratch,
                  std::int64_t count, std::int64_t height, std::int64_t width, int threads) {
  return static_cast<int>(shade_fast::cpu::jpeg_gradient(
      pointer<const float>(gradient), pointer<const std::uint8_t>(inside), pointer<float>(result),
      pointer<float>(scratch), count, height, width, threads));
}

}  // namespace

PYBIND11_MODULE(_cpu, module) {
  module.doc() = "The C++ kernels of shade_fast; shade_fast.ops is their Python interface.";
  const auto released = py::call_guard<py::gil_scoped_release>();
  module.def("optimizer_update", &optimizer_update, released);
  module.def("quantize", &quantize, released);
  module.def("resize", &resize, released);
  module.def("resize_scratch", [](std::int64_t planes, const PyBand& vertical, const PyBand& horizontal) {
    return shade_fast::cpu::resize_scratch(planes, band(vertical), band(horizontal));
  });
  module.def("jpeg", &jpeg, released);
  module.def("jpeg_gradient", &jpeg_gradient, released);
  module.def("jpeg_scratch", &shade_fast::cpu::jpeg_scratch);
  module.def("select_isa", [](const char* name) { return static_cast<int>(shade_fast::cpu::select_isa(name)); });
  module.def("selected_isa", &shade_fast::cpu::selected_isa);
  module.def("status_message", [](int status) { return shade_fast::describe(static_cast<Status>(status)); });

  shade_fast::bindings::define_convolution(module);
  shade_fast::bindings::define_layers(module);

  py::list isas;
  for (int i = 0; const char* name = shade_fast::cpu::built_isa(i); ++i) isas.append(name);
  module.attr("isas") = py::tuple(isas);
  module.attr("compiler") = SHADE_FAST_COMPILER;
}
