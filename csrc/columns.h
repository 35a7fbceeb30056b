// Products of weight rows with tokens that lie as columns: the weights, row-major as the model
// stores them, are the left operand, and nothing of them is copied.
#pragma once

#include <cstdint>

#include "aligned_vector.h"
#include "products.h"

namespace coxcompile {

// Vectors of 16 tokens that meet a pair of weights together, at most.
constexpr int64_t kMostVectors = 4;

// Some tokens as columns, in groups of up to kMostVectors vectors: [group][depth / 2][width][2],
// padded with zeros to whole vectors.
template <typename scalar_t>
struct ColumnTokens {
  AlignedVector<scalar_t> data;
  int64_t count = 0;
  int64_t depth = 0;

  int64_t vectors() const { return (count + 15) / 16; }
  int64_t groups() const { return (vectors() + kMostVectors - 1) / kMostVectors; }
  // The first vector of a group; groups are of about equal width.
  int64_t first_vector(int64_t group) const { return vectors() * group / groups(); }

  // tokens [token_count, token_depth], contiguous.
  void pack(const scalar_t* tokens, int64_t token_count, int64_t token_depth);
};

// Whether this processor multiplies bfloat16 tokens that lie as columns.
bool has_columns();

// How many of an expert's `count` tokens go as columns, by thresholds.h; the others are faster on
// the register tiles of products.h. Zero where there is no such kernel: for types other than
// bfloat16, processors without AVX512-BF16, and odd depths or none.
template <typename scalar_t>
int64_t tokens_as_columns(int64_t count, int64_t depth);

// result[token * result_stride + row] = sum_k weight[row * row_stride + k] * token[k], in float32,
// for at most kStripRows rows. `following`: the rows that will be read after these.
template <typename scalar_t>
void multiply_columns(const scalar_t* weight, int64_t row_stride, int64_t rows,
                      const scalar_t* following, const ColumnTokens<scalar_t>& tokens,
                      float* result, int64_t result_stride);

}  // namespace coxcompile
