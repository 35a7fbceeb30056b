#include "columns.h"

#include <ATen/Version.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <string>
#include <type_traits>

#include "panel_layout.h"
#include "thresholds.h"

namespace coxcompile {

void multiply_columns_avx512_bf16(const at::BFloat16* weight, int64_t row_stride, int64_t rows,
                                  const at::BFloat16* following,
                                  const ColumnTokens<at::BFloat16>& tokens, float* result,
                                  int64_t result_stride);

bool has_columns() {
  static const bool supported = at::get_cpu_capability().rfind("AVX512", 0) == 0 &&
                                __builtin_cpu_supports("avx512bw") &&
                                __builtin_cpu_supports("avx512bf16");
  return supported;
}

template <typename scalar_t>
void ColumnTokens<scalar_t>::pack(const scalar_t* tokens, int64_t token_count,
                                  int64_t token_depth) {
  count = token_count;
  depth = token_depth;
  if constexpr (std::is_same_v<scalar_t, at::BFloat16>) {
    data.resize(vectors() * 16 * depth);
    for (int64_t group = 0; group < groups(); ++group) {
      const int64_t first = 16 * first_vector(group);
      const int64_t width = 16 * first_vector(group + 1) - first;
      const int64_t present = std::min(width, count - first);
      scalar_t* columns = data.data() + first * depth;
      if (present < width) {
        std::fill_n(columns, width * depth, scalar_t(0));
      }
      transpose_rows(tokens + first * depth, depth, present, depth, width, columns);
    }
  }
}

template <typename scalar_t>
int64_t tokens_as_columns(int64_t count, int64_t depth) {
  const int64_t least = column_threshold();
  if (!std::is_same_v<scalar_t, at::BFloat16> || least == 0 || count < least || depth == 0 ||
      depth % 2 != 0 || !has_columns()) {
    return 0;
  }
  return count % 16 < last_vector_threshold() ? count / 16 * 16 : count;
}

template <typename scalar_t>
void multiply_columns(const scalar_t* weight, int64_t row_stride, int64_t rows,
                      const scalar_t* following, const ColumnTokens<scalar_t>& tokens,
                      float* result, int64_t result_stride) {
  if constexpr (std::is_same_v<scalar_t, at::BFloat16>) {
    multiply_columns_avx512_bf16(weight, row_stride, rows, following, tokens, result,
                                 result_stride);
  }
}

#define COXCOMPILE_INSTANTIATE(scalar_t)                                             \
  template struct ColumnTokens<scalar_t>;                                            \
  template int64_t tokens_as_columns<scalar_t>(int64_t, int64_t);                    \
  template void multiply_columns(const scalar_t*, int64_t, int64_t, const scalar_t*, \
                                 const ColumnTokens<scalar_t>&, float*, int64_t);
COXCOMPILE_INSTANTIATE(float)
COXCOMPILE_INSTANTIATE(at::BFloat16)
COXCOMPILE_INSTANTIATE(at::Half)
#undef COXCOMPILE_INSTANTIATE

}  // namespace coxcompile
