#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "products.h"

namespace coxcompile {
namespace {
#include "product_tiles.h"
#include "row_major_products.h"
#include "transposed_products.h"

inline FloatLanes widen_halves(const at::Half* source) {
  FloatLanes wide;
  for (int i = 0; i < 16; ++i) {
    wide[i] = static_cast<float>(source[i]);
  }
  return wide;
}

#include "widening_lanes.h"
}  // namespace

template <typename scalar_t>
ProductKernels<scalar_t> portable_products() {
  using Lanes = WideningLanes<scalar_t>;
  return {row_major_products<Lanes>, Lanes::step, transposed_products<Lanes>, 2, "portable"};
}
template ProductKernels<float> portable_products();
template ProductKernels<at::BFloat16> portable_products();
template ProductKernels<at::Half> portable_products();

}  // namespace coxcompile
