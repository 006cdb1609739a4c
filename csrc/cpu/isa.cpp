// Which instruction sets are in the build, which of them this machine runs, and which is in use.
#include "isa.h"

#include <atomic>
#include <cstring>
#include <iterator>

#if defined(SHADE_FAST_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "../shade_fast.h"

namespace shade_fast::cpu {
namespace {

struct Isa {
  const char* name;
  std::size_t width;  // its place in each family's table
  bool tiles;
  bool (*runs_here)();
};

#if defined(SHADE_FAST_X86)
bool runs_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx2") &&
         __builtin_cpu_supports("fma");
}
#endif

#if defined(SHADE_FAST_AMX)
// The tiles' state is large, and Linux keeps it only for processes that have asked; from then on it refuses alternate
// signal stacks that are too small for it, and where such a stack is in use it refuses the tiles.
bool runs_amx() {
  constexpr unsigned kTiles = 1u << 24 | 1u << 22, kAvx512Bfloat16 = 1u << 5;  // amx-tile and amx-bf16
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  unsigned a, b, c, d;
  if (!runs_avx512() || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0 || (d & kTiles) != kTiles) return false;
  if (__get_cpuid_count(7, 1, &a, &b, &c, &d) == 0 || (a & kAvx512Bfloat16) == 0) return false;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

// Widest first.
const Isa kBuilt[] = {
#if defined(SHADE_FAST_AMX)
    {"amx", 0, true, runs_amx},
#endif
#if defined(SHADE_FAST_X86)
    {"avx512", 0, false, runs_avx512},
    {"avx2", 1, false, [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {"portable", kWidths - 1, false, [] { return true; }},
};

std::size_t widest() {
  std::size_t index = 0;
  while (!kBuilt[index].runs_here()) ++index;
  return index;
}

// No place in kBuilt until one is selected or asked for: a process that selects another is not asked for tiles.
std::atomic<std::size_t> selected_index{std::size(kBuilt)};

const Isa& current() {
  std::size_t index = selected_index.load(std::memory_order_relaxed);
  if (index == std::size(kBuilt)) {
    std::size_t found = widest();
    if (selected_index.compare_exchange_strong(index, found)) index = found;
  }
  return kBuilt[index];
}

}  // namespace

std::size_t selected_width() { return current().width; }

bool selected_tiles() { return current().tiles; }

Status select_isa(const char* name) {
  for (std::size_t index = 0; index < std::size(kBuilt); ++index) {
    if (std::strcmp(kBuilt[index].name, name) != 0) continue;
    if (!kBuilt[index].runs_here()) return Status::unsupported_isa;
    selected_index.store(index);
    return Status::ok;
  }
  return Status::unknown_isa;
}

const char* selected_isa() { return current().name; }

const char* built_isa(int index) {
  return index >= 0 && index < static_cast<int>(std::size(kBuilt)) ? kBuilt[index].name : nullptr;
}

}  // namespace shade_fast::cpu
