// Tables of kernels, one for each width of vectors. The kernels' sources are compiled several times, with SHADE_FAST_ISA
// naming the namespace; each copy defines its own table. They use nothing of the C++ library, whose inline functions the
// linker would merge.
#pragma once

#define SHADE_FAST_KERNELS(Table, name) \
  namespace avx512 {                    \
  extern const Table name;              \
  }                                     \
  namespace avx2 {                      \
  extern const Table name;              \
  }                                     \
  namespace portable {                  \
  extern const Table name;              \
  }
