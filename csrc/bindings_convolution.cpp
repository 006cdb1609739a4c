// Convolutions with frozen weights, and products of matrices, for Python. Pointers are integers; the GIL is released while work runs.
#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>

#include "bindings.h"
#include "shade_fast.h"

namespace py = pybind11;
using shade_fast::cpu::Algorithm;
using shade_fast::cpu::Convolution;

namespace shade_fast::bindings {
namespace {

using Size = std::int64_t;
// In the order of the structure's members.
using PyConvolution = std::tuple<Size, Size, Size, Size, Size, Size, Size, Size, Size, Size, Size, Size, Size>;

Convolution convolution(const PyConvolution& fields) {
  return std::apply([](auto... field) { return Convolution{field...}; }, fields);
}

int pack_weights(int algorithm, const PyConvolution& fields, std::uintptr_t weights, std::uintptr_t packed) {
  return static_cast<int>(cpu::pack_weights(static_cast<Algorithm>(algorithm), convolution(fields),
                                            pointer<const float>(weights), pointer<float>(packed)));
}

int convolve(int algorithm, const PyConvolution& fields, std::uintptr_t packed, std::uintptr_t input,
             std::uintptr_t result, const PyFinish& after, std::uintptr_t scratch, int threads) {
  return static_cast<int>(cpu::convolve(static_cast<Algorithm>(algorithm), convolution(fields),
                                        pointer<const float>(packed), pointer<const float>(input),
                                        pointer<float>(result), finish(after), pointer<float>(scratch), threads));
}

using PyMatrix = std::tuple<std::uintptr_t, Size, Size>;

int matrix_product(int algorithm, const PyMatrix& left, const PyMatrix& right, std::uintptr_t result, Size result_step,
                   Size rows, Size depth, Size columns, float factor, bool accumulate, std::uintptr_t scratch, int threads) {
  const auto matrix = [](const PyMatrix& fields) {
    return cpu::Matrix{pointer<const float>(std::get<0>(fields)), std::get<1>(fields), std::get<2>(fields)};
  };
  return static_cast<int>(cpu::matrix_product(static_cast<Algorithm>(algorithm),
                                              {matrix(left), matrix(right), pointer<float>(result), result_step, rows,
                                               depth, columns, factor, accumulate},
                                              pointer<float>(scratch), threads));
}

}  // namespace

void define_convolution(py::module_& module) {
  const auto released = py::call_guard<py::gil_scoped_release>();
  module.def("convolution_supports", [](int algorithm, const PyConvolution& fields) {
    return cpu::supports(static_cast<Algorithm>(algorithm), convolution(fields));
  });
  module.def("packed_weights_size", [](int algorithm, const PyConvolution& fields) {
    return cpu::packed_weights_size(static_cast<Algorithm>(algorithm), convolution(fields));
  });
  module.def("convolution_scratch", [](int algorithm, const PyConvolution& fields, int threads) {
    return cpu::convolution_scratch(static_cast<Algorithm>(algorithm), convolution(fields), threads);
  });
  module.def("pack_weights", &pack_weights, released);
  module.def("convolve", &convolve, released);
  module.def("matrix_product", &matrix_product, released);
  module.def("matrix_product_supports",
             [](int algorithm) { return cpu::supports_product(static_cast<Algorithm>(algorithm)); });
  module.def("matrix_product_scratch", [](int algorithm, Size depth, Size columns, int threads) {
    return cpu::matrix_product_scratch(static_cast<Algorithm>(algorithm), depth, columns, threads);
  });
}

}  // namespace shade_fast::bindings
