// What the parts of a compiled module share: pointers cross from Python as integers.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

namespace shade_fast::bindings {

template <typename T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

void define_convolution(pybind11::module_& module);
void define_layers(pybind11::module_& module);

}  // namespace shade_fast::bindings
