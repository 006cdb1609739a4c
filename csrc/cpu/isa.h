// The instruction set that runs. "amx" is avx512 with tiles besides, for what has kernels of its own for them.
#pragma once

#include <cstddef>
#include <initializer_list>

namespace shade_fast::cpu {

#if defined(SHADE_FAST_X86)
constexpr std::size_t kWidths = 3;  // avx512, avx2, portable
#else
constexpr std::size_t kWidths = 1;  // portable
#endif

std::size_t selected_width();
bool selected_tiles();

template <typename Table>
const Table& of_selected_width(std::initializer_list<const Table*> tables) {
  return *tables.begin()[selected_width()];
}

// The table of kernels that SHADE_FAST_KERNELS declares under this name, for the instruction set that runs.
#if defined(SHADE_FAST_X86)
#define SHADE_FAST_SELECTED(name) of_selected_width({&avx512::name, &avx2::name, &portable::name})
#else
#define SHADE_FAST_SELECTED(name) of_selected_width({&portable::name})
#endif

}  // namespace shade_fast::cpu
