// The other layers of a frozen network for Python. Pointers are integers; the GIL is released while work runs.
#include <tuple>

#include "bindings.h"
#include "shade_fast.h"

namespace py = pybind11;

namespace shade_fast::bindings {
namespace {

using Address = std::uintptr_t;
using PyExtent = std::tuple<std::int64_t, std::int64_t, std::int64_t>;
// images, height, width, channels; out_height, out_width; kernel, stride, pad
using PyWindow = std::tuple<std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t, std::int64_t,
                            std::int64_t, std::int64_t, std::int64_t>;

const float* floats(Address address) { return pointer<const float>(address); }
float* result(Address address) { return pointer<float>(address); }

cpu::Extent extent(const PyExtent& fields) {
  const auto [images, pixels, channels] = fields;
  return {images, pixels, channels};
}

cpu::Window window(const PyWindow& fields) {
  const auto [images, height, width, channels, out_height, out_width, kernel, stride, pad] = fields;
  return {images, height, width, channels, out_height, out_width, kernel, stride, pad};
}

int pointwise(Address a, Address out, const PyExtent& size, const PyFinish& parts, int threads) {
  return static_cast<int>(cpu::pointwise(floats(a), result(out), extent(size), finish(parts), threads));
}

int silu(Address a, Address out, const PyExtent& size, int threads) {
  return static_cast<int>(cpu::silu(floats(a), result(out), extent(size), threads));
}

int silu_gradient(Address gradient, Address a, Address out, const PyExtent& size, const PyFinish& parts, int threads) {
  return static_cast<int>(
      cpu::silu_gradient(floats(gradient), floats(a), result(out), extent(size), finish(parts), threads));
}

int group_norm(Address input, Address gamma, Address beta, Address statistics, Address out, const PyExtent& size,
               std::int64_t groups, float epsilon, int activation, Address scratch, int threads) {
  return static_cast<int>(cpu::group_norm(floats(input), floats(gamma), floats(beta), result(statistics), result(out),
                                          extent(size), groups, epsilon, static_cast<cpu::Activation>(activation),
                                          result(scratch), threads));
}

int group_norm_gradient(Address gradient, Address input, Address gamma, Address beta, Address statistics, Address out,
                        const PyExtent& size, std::int64_t groups, int activation, const PyFinish& parts,
                        Address scratch, int threads) {
  return static_cast<int>(cpu::group_norm_gradient(
      floats(gradient), floats(input), floats(gamma), floats(beta), floats(statistics), result(out), extent(size),
      groups, static_cast<cpu::Activation>(activation), finish(parts), result(scratch), threads));
}

int max_pool(Address input, Address out, Address index, const PyWindow& shape, int threads) {
  return static_cast<int>(
      cpu::max_pool(floats(input), result(out), pointer<std::uint8_t>(index), window(shape), threads));
}

int max_pool_gradient(Address gradient, Address index, Address out, const PyWindow& shape, const PyFinish& parts,
                      int threads) {
  return static_cast<int>(cpu::max_pool_gradient(floats(gradient), pointer<const std::uint8_t>(index), result(out),
                                                 window(shape), finish(parts), threads));
}

int blur(Address input, Address taps, Address out, const PyWindow& shape, int threads) {
  return static_cast<int>(cpu::blur(floats(input), floats(taps), result(out), window(shape), threads));
}

int blur_gradient(Address gradient, Address taps, Address out, const PyWindow& shape, const PyFinish& parts,
                  int threads) {
  return static_cast<int>(
      cpu::blur_gradient(floats(gradient), floats(taps), result(out), window(shape), finish(parts), threads));
}

int unit_length(Address activations, Address out, const PyExtent& size, int threads) {
  return static_cast<int>(cpu::unit_length(floats(activations), result(out), extent(size), threads));
}

int lpips_layer(Address activations, Address clean, Address head, Address distance, const PyExtent& size,
                Address scratch, int threads) {
  return static_cast<int>(cpu::lpips_layer(floats(activations), floats(clean), floats(head), result(distance),
                                           extent(size), result(scratch), threads));
}

int lpips_layer_gradient(Address activations, Address clean, Address head, Address upstream, Address out,
                         const PyExtent& size, const PyFinish& parts, int threads) {
  return static_cast<int>(cpu::lpips_layer_gradient(floats(activations), floats(clean), floats(head), floats(upstream),
                                                    result(out), extent(size), finish(parts), threads));
}

int to_channels_last(Address input, Address scale, Address shift, Address out, const PyExtent& size, int threads) {
  return static_cast<int>(
      cpu::to_channels_last(floats(input), floats(scale), floats(shift), result(out), extent(size), threads));
}

int to_channels_first(Address input, Address scale, Address shift, Address out, const PyExtent& size, int threads) {
  return static_cast<int>(
      cpu::to_channels_first(floats(input), floats(scale), floats(shift), result(out), extent(size), threads));
}

}  // namespace

void define_layers(py::module_& module) {
  const auto released = py::call_guard<py::gil_scoped_release>();
  module.def("pointwise", &pointwise, released);
  module.def("silu", &silu, released);
  module.def("silu_gradient", &silu_gradient, released);
  module.def("group_norm", &group_norm, released);
  module.def("group_norm_gradient", &group_norm_gradient, released);
  module.def("group_norm_scratch", [](const PyExtent& size, std::int64_t groups, int threads) {
    return cpu::group_norm_scratch(extent(size), groups, threads);
  });
  module.def("max_pool", &max_pool, released);
  module.def("max_pool_gradient", &max_pool_gradient, released);
  module.def("blur", &blur, released);
  module.def("blur_gradient", &blur_gradient, released);
  module.def("unit_length", &unit_length, released);
  module.def("lpips_layer", &lpips_layer, released);
  module.def("lpips_layer_gradient", &lpips_layer_gradient, released);
  module.def("lpips_layer_scratch", [](const PyExtent& size) { return cpu::lpips_layer_scratch(extent(size)); });
  module.def("to_channels_last", &to_channels_last, released);
  module.def("to_channels_first", &to_channels_first, released);
}

}  // namespace shade_fast::bindings
