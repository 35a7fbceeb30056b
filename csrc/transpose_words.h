// 16 x 16 words, transposed in registers: rows are interleaved by words, then by pairs of words,
// then by quarters of a register. To be included inside an anonymous namespace, after immintrin.h
// and a target with AVX-512 (F); no include guard on purpose.

// Calls store(i, register) with word i of every row, for i in 0..15; the rows are overwritten.
template <typename Store>
[[gnu::always_inline]] inline void transpose_words(__m512i (&a)[16], const Store& store) {
  __m512i b[16];
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
    store(w, _mm512_shuffle_i32x4(even_low, even_high, 0x88));
    store(w + 8, _mm512_shuffle_i32x4(even_low, even_high, 0xdd));
    store(w + 4, _mm512_shuffle_i32x4(odd_low, odd_high, 0x88));
    store(w + 12, _mm512_shuffle_i32x4(odd_low, odd_high, 0xdd));
  }
}
