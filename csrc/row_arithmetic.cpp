#include "row_arithmetic.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>

#include "vector_clones.h"

namespace coxcompile {
namespace {

template <typename source_t, typename destination_t>
[[gnu::always_inline]] inline void convert(const source_t* source, int64_t count,
                                           destination_t* destination) {
  for (int64_t i = 0; i < count; ++i) {
    destination[i] = static_cast<destination_t>(source[i]);
  }
}

template <typename scalar_t>
[[gnu::always_inline]] inline void add(const scalar_t* source, int64_t count, float* destination) {
  for (int64_t i = 0; i < count; ++i) {
    destination[i] += static_cast<float>(source[i]);
  }
}

}  // namespace

// Clones and templates do not go together, so each type has functions of its own.
#define COXCOMPILE_ROWS_OF(scalar_t, suffix)                                           \
  COXCOMPILE_VECTOR_CLONES                                                             \
  void round_row_##suffix(const float* source, int64_t count, scalar_t* destination) { \
    convert(source, count, destination);                                               \
  }                                                                                    \
  COXCOMPILE_VECTOR_CLONES                                                             \
  void add_row_##suffix(const scalar_t* source, int64_t count, float* destination) {   \
    add(source, count, destination);                                                   \
  }                                                                                    \
  template <>                                                                          \
  void round_row(const float* source, int64_t count, scalar_t* destination) {          \
    round_row_##suffix(source, count, destination);                                    \
  }                                                                                    \
  template <>                                                                          \
  void add_row(const scalar_t* source, int64_t count, float* destination) {            \
    add_row_##suffix(source, count, destination);                                      \
  }
COXCOMPILE_ROWS_OF(float, float)
COXCOMPILE_ROWS_OF(at::BFloat16, bfloat16)
COXCOMPILE_ROWS_OF(at::Half, half)
#undef COXCOMPILE_ROWS_OF

COXCOMPILE_VECTOR_CLONES
void scale_row(const float* source, float factor, int64_t count, float* destination) {
  for (int64_t i = 0; i < count; ++i) {
    destination[i] = factor * source[i];
  }
}

COXCOMPILE_VECTOR_CLONES
void sum_rows(const float* rows, int64_t row_count, int64_t stride, int64_t count, float* sums) {
  std::fill_n(sums, count, 0.0f);
  for (int64_t row = 0; row < row_count; ++row) {
    for (int64_t i = 0; i < count; ++i) {
      sums[i] += rows[row * stride + i];
    }
  }
}

}  // namespace coxcompile
