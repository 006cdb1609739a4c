// The instruction set that runs. Each family of kernels has a table with one entry for each instruction set in the
// build, in the order of built_isa.
#pragma once

#include <cstddef>

namespace shade_fast::cpu {

#if defined(SHADE_FAST_X86)
constexpr std::size_t kIsas = 3;  // avx512, avx2, portable
#else
constexpr std::size_t kIsas = 1;  // portable
#endif

std::size_t selected_isa_index();

template <typename Kernels>
const Kernels& selected(const Kernels (&table)[kIsas]) {
  return table[selected_isa_index()];
}

}  // namespace shade_fast::cpu
