#include "panel_layout.h"

#include <immintrin.h>

#include <cstring>

#pragma GCC target("avx512f,avx512bw")
namespace coxcompile {
namespace {

// panel[word * panel_rows + row] = the word at weight[row * stride + word * group]. Bytes are moved
// with memcpy: weights need not be aligned to words.
template <int64_t group, typename scalar_t>
void transpose_words(const scalar_t* weight, int64_t stride, int64_t row_begin, int64_t row_end,
                     int64_t word_begin, int64_t word_end, int64_t panel_rows, scalar_t* panel) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    for (int64_t word = word_begin; word < word_end; ++word) {
      std::memcpy(panel + (word * panel_rows + row) * group, weight + row * stride + word * group,
                  group * sizeof(scalar_t));
    }
  }
}

// A block of 16 rows by 16 words, transposed in registers: rows are interleaved by words, then by
// pairs of words, then by quarters of a register.
template <int64_t group, typename scalar_t>
void transpose_block(const scalar_t* weight, int64_t stride, int64_t panel_rows, scalar_t* panel) {
  __m512i a[16];
  __m512i b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    a[i] = _mm512_loadu_si512(weight + i * stride);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    b[2 * i] = _mm512_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
    b[2 * i + 1] = _mm512_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    a[4 * i] = _mm512_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
    a[4 * i + 1] = _mm512_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
    a[4 * i + 2] = _mm512_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
    a[4 * i + 3] = _mm512_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
  }
  // a[4 * q + w] now holds rows 4q..4q+3 of the words w, w + 4, w + 8, w + 12.
#pragma GCC unroll 4
  for (int w = 0; w < 4; ++w) {
    const __m512i even_low = _mm512_shuffle_i32x4(a[w], a[w + 4], 0x88);
    const __m512i odd_low = _mm512_shuffle_i32x4(a[w], a[w + 4], 0xdd);
    const __m512i even_high = _mm512_shuffle_i32x4(a[w + 8], a[w + 12], 0x88);
    const __m512i odd_high = _mm512_shuffle_i32x4(a[w + 8], a[w + 12], 0xdd);
    const auto store = [&](int word, __m512i low, __m512i high, bool second) {
      const __m512i rows =
          second ? _mm512_shuffle_i32x4(low, high, 0xdd) : _mm512_shuffle_i32x4(low, high, 0x88);
      _mm512_storeu_si512(panel + word * panel_rows * group, rows);
    };
    store(w, even_low, even_high, false);
    store(w + 8, even_low, even_high, true);
    store(w + 4, odd_low, odd_high, false);
    store(w + 12, odd_low, odd_high, true);
  }
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
  transpose_words<group>(weight, stride, 0, whole_rows, whole_words, words, panel_rows, panel);
  transpose_words<group>(weight, stride, whole_rows, rows, 0, words, panel_rows, panel);
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
