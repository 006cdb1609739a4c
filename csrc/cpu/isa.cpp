// Which instruction sets are in the build, which of them this machine runs, and which is in use.
#include "isa.h"

#include <atomic>
#include <cstring>

#include "../shade_fast.h"

namespace shade_fast::cpu {
namespace {

struct Isa {
  const char* name;
  bool (*runs_here)();
};

// Widest first.
const Isa kBuilt[kIsas] = {
#if defined(SHADE_FAST_X86)
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
     }},
    {"avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {"portable", [] { return true; }},
};

std::size_t widest() {
  std::size_t index = 0;
  while (!kBuilt[index].runs_here()) ++index;
  return index;
}

std::atomic<std::size_t>& selected_index() {
  static std::atomic<std::size_t> index{widest()};
  return index;
}

}  // namespace

std::size_t selected_isa_index() { return selected_index().load(std::memory_order_relaxed); }

Status select_isa(const char* name) {
  for (std::size_t index = 0; index < kIsas; ++index) {
    if (std::strcmp(kBuilt[index].name, name) != 0) continue;
    if (!kBuilt[index].runs_here()) return Status::unsupported_isa;
    selected_index().store(index);
    return Status::ok;
  }
  return Status::unknown_isa;
}

const char* selected_isa() { return kBuilt[selected_isa_index()].name; }

const char* built_isa(int index) {
  return index >= 0 && index < static_cast<int>(kIsas) ? kBuilt[index].name : nullptr;
}

}  // namespace shade_fast::cpu
