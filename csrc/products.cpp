#include "products.h"

#include <ATen/Version.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <string>
#include <type_traits>

namespace coxcompile {

template <typename scalar_t>
ProductKernels<scalar_t> portable_products();
template <typename scalar_t>
ProductKernels<scalar_t> avx2_products();
template <typename scalar_t>
ProductKernels<scalar_t> avx512_products();
ProductKernels<at::BFloat16> avx512_bf16_products();

namespace {

template <typename scalar_t>
ProductKernels<scalar_t> choose_products() {
#if defined(__x86_64__)
  const std::string capability = at::get_cpu_capability();
  const bool avx512 = capability.rfind("AVX512", 0) == 0 && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if constexpr (std::is_same_v<scalar_t, at::BFloat16>) {
    if (avx512 && __builtin_cpu_supports("avx512bf16")) {
      return avx512_bf16_products();
    }
  }
  if (avx512) {
    return avx512_products<scalar_t>();
  }
  if (capability != "DEFAULT" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    return avx2_products<scalar_t>();
  }
#endif
  return portable_products<scalar_t>();
}

}  // namespace

template <typename scalar_t>
const ProductKernels<scalar_t>& product_kernels() {
  static const ProductKernels<scalar_t> chosen = choose_products<scalar_t>();
  return chosen;
}
template const ProductKernels<float>& product_kernels();
template const ProductKernels<at::BFloat16>& product_kernels();
template const ProductKernels<at::Half>& product_kernels();

}  // namespace coxcompile
