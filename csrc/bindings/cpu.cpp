// shade_fast._cpu: the CPU half of shade_fast.h for Python.
#include "wrap.h"

namespace py = pybind11;
namespace cpu = shade_fast::cpu;

PYBIND11_MODULE(_cpu, module) {
  using shade_fast::bindings::define;
  module.doc() = "The C++ kernels of shade_fast; shade_fast.ops is their Python interface.";

  define<&cpu::optimizer_update>(module, "optimizer_update");
  define<&cpu::quantize>(module, "quantize");
  define<&cpu::resize>(module, "resize");
  define<&cpu::resize_scratch>(module, "resize_scratch");
  define<&cpu::jpeg>(module, "jpeg");
  define<&cpu::jpeg_gradient>(module, "jpeg_gradient");
  define<&cpu::jpeg_scratch>(module, "jpeg_scratch");

  define<&cpu::supports>(module, "convolution_supports");
  define<&cpu::packed_weights_size>(module, "packed_weights_size");
  define<&cpu::pack_weights>(module, "pack_weights");
  define<&cpu::convolution_scratch>(module, "convolution_scratch");
  define<&cpu::convolve>(module, "convolve");
  define<&cpu::supports_product>(module, "matrix_product_supports");
  define<&cpu::matrix_product_scratch>(module, "matrix_product_scratch");
  define<&cpu::matrix_product>(module, "matrix_product");

  define<&cpu::epilogue>(module, "epilogue");
  define<&cpu::silu>(module, "silu");
  define<&cpu::silu_gradient>(module, "silu_gradient");
  define<&cpu::group_norm_scratch>(module, "group_norm_scratch");
  define<&cpu::group_norm>(module, "group_norm");
  define<&cpu::group_norm_gradient>(module, "group_norm_gradient");
  define<&cpu::max_pool>(module, "max_pool");
  define<&cpu::max_pool_gradient>(module, "max_pool_gradient");
  define<&cpu::blur>(module, "blur");
  define<&cpu::blur_gradient>(module, "blur_gradient");
  define<&cpu::unit_length>(module, "unit_length");
  define<&cpu::lpips_layer_scratch>(module, "lpips_layer_scratch");
  define<&cpu::lpips_layer>(module, "lpips_layer");
  define<&cpu::lpips_layer_gradient>(module, "lpips_layer_gradient");
  define<&cpu::to_channels_last>(module, "to_channels_last");
  define<&cpu::to_channels_first>(module, "to_channels_first");

  module.def("select_isa", [](const char* name) { return static_cast<int>(cpu::select_isa(name)); });
  module.def("selected_isa", &cpu::selected_isa);
  module.def("status_message", [](int status) { return shade_fast::describe(static_cast<shade_fast::Status>(status)); });
  py::list isas;
  for (int i = 0; const char* name = cpu::built_isa(i); ++i) isas.append(name);
  module.attr("isas") = py::tuple(isas);
  module.attr("compiler") = SHADE_FAST_COMPILER;
}
