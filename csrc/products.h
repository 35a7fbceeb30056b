// Dense products of a block of weight rows with some tokens, straight from the model's own weight
// layout: weights are never packed, tokens are.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "aligned_vector.h"

namespace coxcompile {

// Rows of weights whose sums stay in the first-level cache until all of the depth is added; a
// multiple of the rows of every tile, and of 16.
constexpr int64_t kStripRows = 48;

// What to fetch in good time for `row` of a strip of rows that is walked in blocks of the depth,
// here the one that begins at k. After the last row of a block comes the first one of the next
// block, after those of the last block come the rows at `following`; to fetch what is beyond the
// weights does no harm.
template <typename scalar_t>
const scalar_t* row_to_fetch(const scalar_t* strip, int64_t row_stride, int64_t rows, int64_t row,
                             int64_t k, int64_t block, int64_t depth, const scalar_t* following) {
  if (row < rows) {
    return strip + row * row_stride + k;
  }
  const scalar_t* next = k + block < depth ? strip + k + block : following;
  return next + (row - rows) * row_stride;
}

// How many of the `left` tokens go into the next register tile. 7 and 8 go as 4 + 3 and 4 + 4: a
// tile of one or two is bound by loads.
inline int64_t tile_width(int64_t left) {
  return left == 7 || left == 8 ? 4 : std::min<int64_t>(left, 6);
}

// Tokens cut into tiles, each tile interleaved by `step` elements of the depth and padded with
// zeros: [tile][depth / step][tile_width][step]. The hidden size is often a multiple of 4 KiB: rows
// read side by side would then fall into the same cache set and evict each other; one stream does
// not.
template <typename scalar_t>
struct PackedTokens {
  AlignedVector<scalar_t> data;
  int64_t count = 0;
  int64_t padded_depth = 0;

  void pack(const scalar_t* const* tokens, int64_t token_count, int64_t depth, int64_t step) {
    count = token_count;
    padded_depth = (depth + step - 1) / step * step;
    data.resize(count * padded_depth);
    scalar_t* destination = data.data();
    for (int64_t first = 0; first < count;) {
      const int64_t width = tile_width(count - first);
      for (int64_t k = 0; k < depth; k += step) {
        const int64_t elements = std::min(step, depth - k);
        for (int64_t t = 0; t < width; ++t, destination += step) {
          std::memcpy(destination, tokens[first + t] + k, elements * sizeof(scalar_t));
          if (elements < step) {
            std::fill(destination + elements, destination + step, scalar_t(0));
          }
        }
      }
      first += width;
    }
  }
};

// One table per element type and instruction set. All products are summed in float32.
template <typename scalar_t>
struct ProductKernels {
  // weight [rows, depth] with `row_stride` elements between rows (nn.Linear's layout):
  //   result[token * result_stride + row] = sum_k weight[row * row_stride + k] * token[k]
  // `following`: the rows that will be read after these, so that the memory does not idle in
  // between; nullptr: these rows have just been read, and there is nothing to fetch.
  using RowMajor = void (*)(const scalar_t* weight, int64_t row_stride, int64_t rows,
                            const scalar_t* following, const PackedTokens<scalar_t>& tokens,
                            int64_t depth, float* result, int64_t result_stride);
  // weight [depth, columns] with `depth_stride` elements between rows (GPT-OSS's layout):
  //   result[token * result_stride + column] = sum_k weight[k * depth_stride + column] * token[k]
  using Transposed = void (*)(const scalar_t* weight, int64_t depth_stride, int64_t columns,
                              const PackedTokens<scalar_t>& tokens, int64_t depth, float* result,
                              int64_t result_stride);

  RowMajor row_major;
  int64_t row_major_step;  // the step tokens are packed with for row_major
  Transposed transposed;
  int64_t transposed_step;
  const char* instruction_set;
};

// The fastest table this processor can run. ATEN_CPU_CAPABILITY (default, avx2, avx512) lowers it,
// as it lowers PyTorch's own kernels.
template <typename scalar_t>
const ProductKernels<scalar_t>& product_kernels();

}  // namespace coxcompile
