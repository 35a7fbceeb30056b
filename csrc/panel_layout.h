// Copies a block of weight rows into the layout of brgemm's B operand: [depth / group][panel_rows]
// [group], where a group is the elements of one 32-bit word: two bfloat16 or one float32.
// All of it needs AVX-512 (F, BW).
#pragma once

#include <c10/util/BFloat16.h>

#include <cstdint>

namespace coxcompile {

// From rows as nn.Linear stores them, `stride` elements apart. The depth of bfloat16 is even.
void transpose_rows(const float* weight, int64_t stride, int64_t rows, int64_t depth,
                    int64_t panel_rows, float* panel);
void transpose_rows(const at::BFloat16* weight, int64_t stride, int64_t rows, int64_t depth,
                    int64_t panel_rows, at::BFloat16* panel);

// From columns of a transposed weight (GPT-OSS's layout), whose `depth` rows are `stride` apart.
void copy_columns(const float* weight, int64_t stride, int64_t rows, int64_t depth,
                  int64_t panel_rows, float* panel);
void copy_columns(const at::BFloat16* weight, int64_t stride, int64_t rows, int64_t depth,
                  int64_t panel_rows, at::BFloat16* panel);

}  // namespace coxcompile
