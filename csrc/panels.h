// Products of a block of weight rows with many tokens. A panel of rows is copied into a thread's
// scratch in the layout that oneDNN's brgemm wants, small enough for the second-level cache, and
// meets all tokens there: the copy costs what a few tokens cost, and brgemm then runs at the peak
// of AVX512-BF16 or AMX. The weights stay where the model keeps them.
#pragma once

#include <cstdint>
#include <vector>

namespace coxcompile {

// Whether panels of bfloat16 weights in this layout are worth having on this processor: oneDNN has
// a brgemm for them, and the kernel of columns.h is not faster.
bool has_panels(bool transposed);

// From how many tokens on panels are faster than the other loops, for bfloat16 by thresholds.h.
// Zero: never, because oneDNN has no brgemm for the type on this processor, is switched off
// (torch.backends.mkldnn), cannot take an odd depth or none, or is slower than the kernel of
// columns.h.
template <typename scalar_t>
int64_t least_tokens_for_panels(int64_t depth, bool transposed);

// result[token * result_stride + row] = sum_k weight(row, k) * tokens[token * token_stride + k],
// where weight(row, k) is weight[row * weight_stride + k], or weight[k * weight_stride + row] if
// `transposed`. Summed in float32. `scratch` is resized as needed.
template <typename scalar_t>
void multiply_by_panels(const scalar_t* weight, int64_t weight_stride, bool transposed,
                        int64_t rows, int64_t depth, const scalar_t* tokens, int64_t token_stride,
                        int64_t token_count, float* result, int64_t result_stride,
                        std::vector<scalar_t>& scratch);

// To be called by each thread after its last multiply_by_panels of a parallel region: gives the
// AMX tiles back.
template <typename scalar_t>
void release_panels();

}  // namespace coxcompile
