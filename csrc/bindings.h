// What the parts of a compiled module share: pointers cross from Python as integers.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>

#include "shade_fast.h"

namespace shade_fast::bindings {

template <typename T>
T* pointer(std::uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// In the order of the structure's members.
using PyFinish = std::tuple<std::uintptr_t, std::uintptr_t, std::uintptr_t, bool, std::uintptr_t>;

inline cpu::Finish finish(const PyFinish& fields) {
  const auto [bias, residual, positive, relu, gate] = fields;
  return {pointer<const float>(bias), pointer<const float>(residual), pointer<std::uint16_t>(positive), relu,
          pointer<const std::uint16_t>(gate)};
}

void define_convolution(pybind11::module_& module);
void define_layers(pybind11::module_& module);

}  // namespace shade_fast::bindings
