#include <c10/util/BFloat16.h>
#include <immintrin.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "products.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
namespace coxcompile {
namespace {
#include "product_tiles.h"
#include "row_major_products.h"
#include "transposed_products.h"

// vdpbf16ps multiplies 32 pairs-along-the-depth and adds each pair into one of 16 float32 lanes.
struct PairLanes {
  using element = at::BFloat16;
  using operand = __m512bh;
  static constexpr int64_t step = 32;

  static operand load(const element* source) { return (__m512bh)_mm512_loadu_si512(source); }
  static operand load_partial(const element* source, int64_t count) {
    return (__m512bh)_mm512_maskz_loadu_epi16((__mmask32{1} << count) - 1, source);
  }
  static FloatLanes multiply_add(FloatLanes sum, operand a, operand b) {
    return (FloatLanes)_mm512_dpbf16_ps((__m512)sum, a, b);
  }

  struct ColumnPair {
    operand low;
    operand high;
  };

  // Interleaves two weight rows into pairs. unpack works within 128-bit lanes, so `low` holds
  // columns 0-3, 8-11, 16-19, 24-27 and `high` the others; store_columns puts them back in order.
  static ColumnPair load_columns(const element* first, const element* second, int64_t columns) {
    const auto mask = static_cast<__mmask32>((uint64_t{1} << columns) - 1);
    const __m512i a = _mm512_maskz_loadu_epi16(mask, first);
    const __m512i b =
        second == nullptr ? _mm512_setzero_si512() : _mm512_maskz_loadu_epi16(mask, second);
    return {(__m512bh)_mm512_unpacklo_epi16(a, b), (__m512bh)_mm512_unpackhi_epi16(a, b)};
  }

  static void multiply_add_columns(FloatLanes& low, FloatLanes& high, const ColumnPair& pair,
                                   const element* token) {
    int32_t two_elements;
    std::memcpy(&two_elements, token, sizeof(two_elements));
    const auto broadcast = (__m512bh)_mm512_set1_epi32(two_elements);
    low = multiply_add(low, pair.low, broadcast);
    high = multiply_add(high, pair.high, broadcast);
  }

  static void store_columns(FloatLanes low, FloatLanes high, float* values) {
    for (int lane = 0; lane < 4; ++lane) {
      for (int i = 0; i < 4; ++i) {
        values[8 * lane + i] = low[4 * lane + i];
        values[8 * lane + 4 + i] = high[4 * lane + i];
      }
    }
  }
};
}  // namespace

ProductKernels<at::BFloat16> avx512_bf16_products() {
  return {row_major_products<PairLanes>, PairLanes::step, transposed_products<PairLanes>, 2,
          "avx512_bf16"};
}

}  // namespace coxcompile
