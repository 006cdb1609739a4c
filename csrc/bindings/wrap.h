// From a function of shade_fast.h to a Python function: pointers cross as integers, structures as tuples of their members
// in order, enumerations and statuses as numbers. The GIL is released while what returns a status works.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <tuple>
#include <type_traits>

#include "../shade_fast.h"

namespace shade_fast::bindings {

using Size = std::int64_t;

// The types of a structure's members, as a std::tuple; a member that is an array of three counts as three.
template <typename Structure>
struct Members;

// A parameter as Python gives it, and how it becomes the function's own.
template <typename T, typename = void>
struct Argument {
  using Python = T;
  static T of(T value) { return value; }
};

template <typename T>
struct Argument<T*> {
  using Python = std::uintptr_t;
  static T* of(std::uintptr_t address) { return reinterpret_cast<T*>(address); }
};

template <typename T>
struct Argument<T, std::enable_if_t<std::is_enum_v<T>>> {
  using Python = int;
  static T of(int number) { return static_cast<T>(number); }
};

template <typename Structure, typename Tuple>
struct Fields;

template <typename Structure, typename... Member>
struct Fields<Structure, std::tuple<Member...>> {
  using Python = std::tuple<typename Argument<Member>::Python...>;
  static Structure of(const Python& fields) {
    return std::apply([](const auto&... field) { return Structure{Argument<Member>::of(field)...}; }, fields);
  }
};

template <typename T>
struct Argument<T, std::enable_if_t<std::is_class_v<T>>> : Fields<T, typename Members<T>::type> {};

template <typename T>
using Plain = std::remove_cv_t<std::remove_reference_t<T>>;

template <auto function, typename Result, typename... Parameter>
void define(pybind11::module_& module, const char* name, Result (*)(Parameter...)) {
  const auto call = [](const typename Argument<Plain<Parameter>>::Python&... given) {
    return function(Argument<Plain<Parameter>>::of(given)...);
  };
  if constexpr (std::is_same_v<Result, Status>) {
    module.def(
        name,
        [call](const typename Argument<Plain<Parameter>>::Python&... given) { return static_cast<int>(call(given...)); },
        pybind11::call_guard<pybind11::gil_scoped_release>());
  } else {
    module.def(name, call);
  }
}

// module.name = function.
template <auto function>
void define(pybind11::module_& module, const char* name) {
  define<function>(module, name, function);
}

template <>
struct Members<Affine> {
  using type = std::tuple<float, float, float, float, float, float>;
};

template <>
struct Members<cpu::Band> {
  using type = std::tuple<const std::int32_t*, const float*, Size, Size, Size>;
};

template <>
struct Members<cpu::Convolution> {
  using type = std::tuple<Size, Size, Size, Size, Size, Size, Size, Size, Size, Size, Size, Size, Size>;
};

template <>
struct Members<cpu::Epilogue> {
  using type = std::tuple<const float*, const float*, std::uint16_t*, bool, const std::uint16_t*>;
};

template <>
struct Members<cpu::Extent> {
  using type = std::tuple<Size, Size, Size>;
};

template <>
struct Members<cpu::Matrix> {
  using type = std::tuple<const float*, Size, Size>;
};

template <>
struct Members<cpu::MatrixProduct> {
  using type = std::tuple<cpu::Matrix, cpu::Matrix, float*, Size, Size, Size, Size, float, bool>;
};

template <>
struct Members<cpu::Window> {
  using type = std::tuple<Size, Size, Size, Size, Size, Size, Size, Size, Size>;
};

}  // namespace shade_fast::bindings
