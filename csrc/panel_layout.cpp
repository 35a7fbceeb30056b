#include "panel_layout.h"

#include <immintrin.h>

#include <cstring>

#pragma GCC target("avx512f,avx512bw")
namespace coxcompile {
namespace {
#include "transpose_words.h"

// panel[word * panel_rows + row] = the word at weight[row * stride + word * group]. Bytes are moved
// with memcpy: weights need not be aligned to words.
template <int64_t group, typename scalar_t>
void copy_words(const scalar_t* weight, int64_t stride, int64_t row_begin, int64_t row_end,
                int64_t word_begin, int64_t word_end, int64_t panel_rows, scalar_t* panel) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    for (int64_t word = word_begin; word < word_end; ++word) {
      std::memcpy(panel + (word * panel_rows + row) * group, weight + row * stride + word * group,
                  group * sizeof(scalar_t));
    }
  }
}

// A block of 16 rows by 16 words.
template <int64_t group, typename scalar_t>
void transpose_block(const scalar_t* weight, int64_t stride, int64_t panel_rows, scalar_t* panel) {
  __m512i rows[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    rows[i] = _mm512_loadu_si512(weight + i * stride);
  }
  transpose_words(rows, [&](int word, __m512i of_rows) {
    _mm512_storeu_si512(panel + word * panel_rows * group, of_rows);
  });
}

template <int64_t group, typename scalar_t>
void transpose(const scalar_t* weight, int64_t stride, int64_t rows, int64_t depth,
               int64_t panel_rows, scalar_t* panel) {
  const int64_t words = depth / group;
  const int64_t whole_rows = rows / 16 * 16;
  const int64_t whole_words = words / 16 * 16;
  for (int64_t word = 0; word < whole_words; word += 16) {
    for (int64_t row = 0; row < whole_rows; row += 16) {
      transpose_block<group>(weight + row * stride + word * group, stride, panel_rows,
                             panel + (word * panel_rows + row) * group);
    }
  }
  copy_words<group>(weight, stride, 0, whole_rows, whole_words, words, panel_rows, panel);
  copy_words<group>(weight, stride, whole_rows, rows, 0, words, panel_rows, panel);
}

}  // namespace

void transpose_rows(const float* weight, int64_t stride, int64_t rows, int64_t depth,
                    int64_t panel_rows, float* panel) {
  transpose<1>(weight, stride, rows, depth, panel_rows, panel);
}

void transpose_rows(const at::BFloat16* weight, int64_t stride, int64_t rows, int64_t depth,
                    int64_t panel_rows, at::BFloat16* panel) {
  transpose<2>(weight, stride, rows, depth, panel_rows, panel);
}

void copy_columns(const float* weight, int64_t stride, int64_t rows, int64_t depth,
                  int64_t panel_rows, float* panel) {
  for (int64_t k = 0; k < depth; ++k) {
    std::memcpy(panel + k * panel_rows, weight + k * stride, rows * sizeof(float));
  }
}

void copy_columns(const at::BFloat16* weight, int64_t stride, int64_t rows, int64_t depth,
                  int64_t panel_rows, at::BFloat16* panel) {
  for (int64_t k = 0; k < depth; k += 2) {
    const at::BFloat16* first = weight + k * stride;
    const at::BFloat16* second = first + stride;
    at::BFloat16* pairs = panel + k * panel_rows;
    for (int64_t row = 0; row < rows; ++row) {
      pairs[2 * row] = first[row];
      pairs[2 * row + 1] = second[row];
    }
  }
}

}  // namespace coxcompile
