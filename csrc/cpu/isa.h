// The instruction set that runs. Each family of kernels has a table with one entry for each of the widths of vectors in
// the build. "amx" is avx512 with tiles besides, for what has kernels of its own for them.
#pragma once

#include <cstddef>

namespace shade_fast::cpu {

#if defined(SHADE_FAST_X86)
constexpr std::size_t kWidths = 3;  // avx512, avx2, portable
#else
constexpr std::size_t kWidths = 1;  // portable
#endif

std::size_t selected_width();
bool selected_tiles();

template <typename Kernels>
const Kernels& selected(const Kernels (&table)[kWidths]) {
  return table[selected_width()];
}

}  // namespace shade_fast::cpu
