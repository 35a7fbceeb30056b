#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

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
