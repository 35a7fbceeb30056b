#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "products.h"

#pragma GCC target("avx2,fma,f16c")
namespace coxcompile {
namespace {
#include "product_tiles.h"
#include "row_major_products.h"
#include "transposed_products.h"

inline FloatLanes widen_halves(const at::Half* source) {
  const auto* eights = reinterpret_cast<const __m128i*>(source);
  const __m256 wide[2] = {_mm256_cvtph_ps(_mm_loadu_si128(eights)),
                          _mm256_cvtph_ps(_mm_loadu_si128(eights + 1))};
  FloatLanes lanes;
  std::memcpy(&lanes, wide, sizeof(lanes));
  return lanes;
}

#include "widening_lanes.h"
}  // namespace

template <typename scalar_t>
ProductKernels<scalar_t> avx2_products() {
  using Lanes = WideningLanes<scalar_t>;
  return {row_major_products<Lanes>, Lanes::step, transposed_products<Lanes>, 2, "avx2"};
}
template ProductKernels<float> avx2_products();
template ProductKernels<at::BFloat16> avx2_products();
template ProductKernels<at::Half> avx2_products();

}  // namespace coxcompile
