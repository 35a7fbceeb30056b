// For loops that the compiler vectorises: compiled for each of these instruction sets, the best of
// which is chosen when the library is loaded.
#pragma once

#if defined(__x86_64__)
#define COXCOMPILE_VECTOR_CLONES \
  __attribute__((target_clones("arch=x86-64-v4", "avx512f", "avx2", "default")))
#else
#define COXCOMPILE_VECTOR_CLONES
#endif
