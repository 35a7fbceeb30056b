#include <c10/util/BFloat16.h>
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "columns.h"

#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")
namespace coxcompile {
namespace {
#include "transpose_words.h"

using Element = at::BFloat16;

// Of so much depth tokens and a strip's weights stay in the second-level cache (1 MB on Zen 4).
constexpr int64_t kDepthBlock = 1024;

// Sums and one operand of each vector of tokens fill the 32 registers, with one weight pair.
constexpr int rows_of_tile(int vectors) { return vectors == 4 ? 6 : vectors == 3 ? 8 : 12; }

// sums[row][token] (+)= weight[row][k] * token[k] for the tile's rows and VECTORS * 16 tokens.
// `rows` may be fewer than the tile's: the last one then stands for the others. As many rows from
// `next` on are fetched meanwhile, one after the other, as the processor's own prefetchers like it.
template <int VECTORS>
void column_tile(const Element* weight, int64_t row_stride, int64_t rows, const Element* tokens,
                 int64_t depth, bool add, const Element* next, float* sums, int64_t sums_stride) {
  constexpr int kRows = rows_of_tile(VECTORS);
  constexpr int64_t kPairElements = 2 * 16 * VECTORS;
  const Element* row[kRows];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
    row[r] = weight + std::min<int64_t>(r, rows - 1) * row_stride;
  }
  __m512 sum[kRows][VECTORS];
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      sum[r][v] = add ? _mm512_loadu_ps(sums + r * sums_stride + 16 * v) : _mm512_setzero_ps();
    }
  }
  const auto add_pair = [&](int64_t k) {
    __m512bh token[VECTORS];
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      token[v] = (__m512bh)_mm512_loadu_si512(tokens + k / 2 * kPairElements + 32 * v);
    }
#pragma GCC unroll 12
    for (int r = 0; r < kRows; ++r) {
      int32_t pair;
      std::memcpy(&pair, row[r] + k, sizeof(pair));
      const auto broadcast = (__m512bh)_mm512_set1_epi32(pair);
#pragma GCC unroll 4
      for (int v = 0; v < VECTORS; ++v) {
        sum[r][v] = _mm512_dpbf16_ps(sum[r][v], broadcast, token[v]);
      }
    }
  };
  const int64_t lines_of_row = depth / 32;
  int64_t lines_left = lines_of_row;
  int64_t k = 0;
  for (; k + 32 <= depth; k += 32) {
    for (int64_t pair = 0; pair < 32; pair += 8) {
      if (next != nullptr) {
#pragma GCC unroll 3
        for (int line = 0; line < (kRows + 3) / 4; ++line) {
          _mm_prefetch(next, _MM_HINT_T0);
          next += 32;
          if (--lines_left == 0) {
            lines_left = lines_of_row;
            next += row_stride - 32 * lines_of_row;
          }
        }
      }
      add_pair(k + pair);
      add_pair(k + pair + 2);
      add_pair(k + pair + 4);
      add_pair(k + pair + 6);
    }
  }
  for (; k < depth; k += 2) {
    add_pair(k);
  }
#pragma GCC unroll 12
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < VECTORS; ++v) {
      _mm512_storeu_ps(sums + r * sums_stride + 16 * v, sum[r][v]);
    }
  }
}

using ColumnTile = void (*)(const Element*, int64_t, int64_t, const Element*, int64_t, bool,
                            const Element*, float*, int64_t);
constexpr ColumnTile kColumnTiles[] = {column_tile<1>, column_tile<2>, column_tile<3>,
                                       column_tile<4>};

// result[token * result_stride + row] = sums[row * sums_stride + token], up to 16 of each.
void transpose_sums(const float* sums, int64_t sums_stride, int64_t tokens, int64_t rows,
                    float* result, int64_t result_stride) {
  __m512i of_rows[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    of_rows[i] = _mm512_loadu_si512(sums + i * sums_stride);
  }
  const auto mask = static_cast<__mmask16>((uint32_t{1} << rows) - 1);
  transpose_words(of_rows, [&](int token, __m512i of_token) {
    if (token < tokens) {
      _mm512_mask_storeu_epi32(result + token * result_stride, mask, of_token);
    }
  });
}

}  // namespace

void multiply_columns_avx512_bf16(const Element* weight, int64_t row_stride, int64_t rows,
                                  const Element* following, const ColumnTokens<Element>& tokens,
                                  float* result, int64_t result_stride) {
  alignas(64) float sums[kStripRows * 16 * kMostVectors];
  for (int64_t group = 0; group < tokens.groups(); ++group) {
    const int64_t first = 16 * tokens.first_vector(group);
    const int64_t vectors = tokens.first_vector(group + 1) - tokens.first_vector(group);
    const int64_t width = 16 * vectors;
    const Element* group_tokens = tokens.data.data() + first * tokens.depth;
    const int64_t tile_rows = rows_of_tile(vectors);
    for (int64_t k = 0; k < tokens.depth; k += kDepthBlock) {
      const int64_t depth = std::min(kDepthBlock, tokens.depth - k);
      for (int64_t row = 0; row < rows; row += tile_rows) {
        const Element* tile = weight + row * row_stride + k;
        // Other groups find the weights in the cache, where the first one has them brought.
        const Element* next = group > 0 ? nullptr
                                        : row_to_fetch(weight, row_stride, rows, row + tile_rows, k,
                                                       kDepthBlock, tokens.depth, following);
        kColumnTiles[vectors - 1](tile, row_stride, rows - row, group_tokens + k * width, depth,
                                  k > 0, next, sums + row * width, width);
      }
    }
    for (int64_t row = 0; row < rows; row += 16) {
      for (int64_t token = 0; token < width && first + token < tokens.count; token += 16) {
        transpose_sums(sums + row * width + token, width, tokens.count - first - token,
                       std::min<int64_t>(16, rows - row),
                       result + (first + token) * result_stride + row, result_stride);
      }
    }
  }
}

}  // namespace coxcompile
