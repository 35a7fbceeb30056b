#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "products.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
namespace coxcompile {
namespace {
#include "product_tiles.h"
#include "row_major_products.h"
#include "transposed_products.h"

inline FloatLanes widen_halves(const at::Half* source) {
  return (FloatLanes)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(source)));
}

#include "widening_lanes.h"
}  // namespace

template <typename scalar_t>
ProductKernels<scalar_t> avx512_products() {
  using Lanes = WideningLanes<scalar_t>;
  return {row_major_products<Lanes>, Lanes::step, transposed_products<Lanes>, 2, "avx512"};
}
template ProductKernels<float> avx512_products();
template ProductKernels<at::BFloat16> avx512_products();
template ProductKernels<at::Half> avx512_products();

}  // namespace coxcompile
