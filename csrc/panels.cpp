#include "panels.h"

#include <ATen/Context.h>
#include <ATen/Version.h>
#include <ATen/native/CPUBlas.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <exception>
#include <string>
#include <type_traits>

#include "panel_layout.h"
#include "thresholds.h"

namespace coxcompile {
namespace {

namespace cpublas = at::native::cpublas;

// The fastest on Zen 5 of those tried: 32 or 64 rows, 32 or 64 tokens, the whole depth or 512.
constexpr int64_t kPanelRows = 32;
constexpr int64_t kPanelBytes = 128 * 1024;
constexpr int64_t kTokensPerCall = 64;

template <typename scalar_t>
constexpr bool kHasBrgemm =
    std::is_same_v<scalar_t, at::BFloat16> || std::is_same_v<scalar_t, float>;

// brgemm takes pairs along the depth for bfloat16 ("VNNI"), single elements for float32.
template <typename scalar_t>
constexpr bool kPaired = sizeof(scalar_t) == 2;

bool has_avx512() {
  static const bool supported =
      at::get_cpu_capability().rfind("AVX512", 0) == 0 && __builtin_cpu_supports("avx512bw");
  return supported;
}

// oneDNN says so only by failing: ONEDNN_MAX_CPU_ISA may have taken its kernel away.
template <typename scalar_t>
bool brgemm_works() {
  static const bool works = [] {
    const std::vector<scalar_t> operands(2 * kPanelRows, scalar_t(0));
    std::vector<float> result(kPanelRows);
    try {
      cpublas::brgemm(1, kPanelRows, 2, 2, kPanelRows, kPanelRows, false, operands.data(),
                      operands.data(), result.data(), kPaired<scalar_t>);
      cpublas::brgemm_release(kPaired<scalar_t>);
      return true;
    } catch (const std::exception&) {
      return false;
    }
  }();
  return works;
}

}  // namespace

bool has_panels(bool transposed) {
  static const bool multiplies_bfloat16 = __builtin_cpu_supports("avx512bf16");
  // could_pack is oneDNN's word for AMX.
  static const bool amx = cpublas::could_pack(at::kBFloat16);
  return has_avx512() && (amx || (transposed && multiplies_bfloat16)) &&
         brgemm_works<at::BFloat16>();
}

template <typename scalar_t>
int64_t least_tokens_for_panels(int64_t depth, bool transposed) {
  if constexpr (kHasBrgemm<scalar_t>) {
    if (depth == 0 || depth % 2 != 0 || !at::globalContext().userEnabledMkldnn()) {
      return 0;
    }
    if constexpr (kPaired<scalar_t>) {
      return has_panels(transposed) ? panel_threshold(has_panels(false)) : 0;
    } else {
      return has_avx512() && brgemm_works<scalar_t>() ? 64 : 0;
    }
  }
  return 0;
}

template <typename scalar_t>
void multiply_by_panels(const scalar_t* weight, int64_t weight_stride, bool transposed,
                        int64_t rows, int64_t depth, const scalar_t* tokens, int64_t token_stride,
                        int64_t token_count, float* result, int64_t result_stride,
                        std::vector<scalar_t>& scratch) {
  if constexpr (kHasBrgemm<scalar_t>) {
    constexpr int64_t panel_depth = kPanelBytes / sizeof(scalar_t) / kPanelRows;
    scratch.resize(kPanelRows * std::min(depth, panel_depth));
    for (int64_t row = 0; row < rows; row += kPanelRows) {
      const int64_t panel_rows = std::min(kPanelRows, rows - row);
      for (int64_t k = 0; k < depth; k += panel_depth) {
        const int64_t block_depth = std::min(panel_depth, depth - k);
        if (transposed) {
          copy_columns(weight + k * weight_stride + row, weight_stride, panel_rows, block_depth,
                       kPanelRows, scratch.data());
        } else {
          transpose_rows(weight + row * weight_stride + k, weight_stride, panel_rows, block_depth,
                         kPanelRows, scratch.data());
        }
        for (int64_t token = 0; token < token_count; token += kTokensPerCall) {
          cpublas::brgemm(std::min(kTokensPerCall, token_count - token), panel_rows, block_depth,
                          token_stride, kPanelRows, result_stride, k > 0,
                          tokens + token * token_stride + k, scratch.data(),
                          result + token * result_stride + row, kPaired<scalar_t>);
        }
      }
    }
  }
}

template <typename scalar_t>
void release_panels() {
  if constexpr (kHasBrgemm<scalar_t>) {
    cpublas::brgemm_release(kPaired<scalar_t>);
  }
}

#define COXCOMPILE_INSTANTIATE(scalar_t)                                               \
  template int64_t least_tokens_for_panels<scalar_t>(int64_t, bool);                   \
  template void multiply_by_panels(const scalar_t*, int64_t, bool, int64_t, int64_t,   \
                                   const scalar_t*, int64_t, int64_t, float*, int64_t, \
                                   std::vector<scalar_t>&);                            \
  template void release_panels<scalar_t>();
COXCOMPILE_INSTANTIATE(float)
COXCOMPILE_INSTANTIATE(at::BFloat16)
COXCOMPILE_INSTANTIATE(at::Half)
#undef COXCOMPILE_INSTANTIATE

}  // namespace coxcompile
