// Elementwise work on rows of float32 results, between products and beside them.
#pragma once

#include <cstdint>

namespace coxcompile {

// destination[i] = source[i], rounded to nearest even.
template <typename scalar_t>
void round_row(const float* source, int64_t count, scalar_t* destination);

// destination[i] = factor * source[i]
void scale_row(const float* source, float factor, int64_t count, float* destination);

// sums[i] = rows[0][i] + rows[1][i] + ..., added in this order; rows are `stride` apart.
void sum_rows(const float* rows, int64_t row_count, int64_t stride, int64_t count, float* sums);

// destination[i] += source[i]
template <typename scalar_t>
void add_row(const scalar_t* source, int64_t count, float* destination);

}  // namespace coxcompile
