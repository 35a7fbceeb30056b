// One expert's two projections of some of its tokens: by panels, or as columns and register tiles.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "columns.h"
#include "expert_call.h"
#include "panels.h"
#include "products.h"
#include "row_arithmetic.h"

namespace coxcompile {

// Some tokens of one expert in the form its projection multiplies: rows for panels, else the first
// ones as columns and the others in tiles.
template <typename scalar_t>
struct TokenBlock {
  int64_t count;
  const scalar_t* rows;  // [count, depth]; nullptr: they are in `columns` and `tiles`
  ColumnTokens<scalar_t> columns;
  PackedTokens<scalar_t> tiles;
  std::vector<scalar_t> gathered;
};

// One expert's projection: depth inputs to `outputs` outputs, in either of the two layouts.
template <typename scalar_t>
struct Projection {
  const scalar_t* weight;
  const scalar_t* bias;  // nullptr for none
  int64_t outputs;
  int64_t depth;
  bool transposed;

  void prepare(const std::vector<const scalar_t*>& tokens, bool panels,
               TokenBlock<scalar_t>& block) const {
    block.count = tokens.size();
    block.rows = nullptr;
    if (panels) {
      block.rows = contiguous(tokens, block.count, block.gathered);
      return;
    }
    const auto& kernels = product_kernels<scalar_t>();
    const int64_t columns = transposed ? 0 : tokens_as_columns<scalar_t>(block.count, depth);
    block.columns.pack(contiguous(tokens, columns, block.gathered), columns, depth);
    block.tiles.pack(tokens.data() + columns, block.count - columns, depth,
                     transposed ? kernels.transposed_step : kernels.row_major_step);
  }

  // The first `count` tokens as [count, depth]: where they are, or gathered.
  const scalar_t* contiguous(const std::vector<const scalar_t*>& tokens, int64_t count,
                             std::vector<scalar_t>& gathered) const {
    if (count == 0 || tokens[count - 1] == tokens[0] + (count - 1) * depth) {
      return tokens[0];
    }
    gathered.resize(count * depth);
    for (int64_t t = 0; t < count; ++t) {
      std::copy_n(tokens[t], depth, gathered.data() + t * depth);
    }
    return gathered.data();
  }

  // result[token][i] = outputs[first + i] for i < count, bias included.
  void run(int64_t first, int64_t count, const TokenBlock<scalar_t>& tokens, float* result,
           int64_t result_stride, std::vector<scalar_t>& panel) const {
    const auto& kernels = product_kernels<scalar_t>();
    const scalar_t* block = transposed ? weight + first : weight + first * depth;
    const int64_t stride = transposed ? outputs : depth;
    if (tokens.rows != nullptr) {
      multiply_by_panels(block, stride, transposed, count, depth, tokens.rows, depth, tokens.count,
                         result, result_stride, panel);
    } else if (transposed) {
      kernels.transposed(block, stride, count, tokens.tiles, depth, result, result_stride);
    } else {
      // A strip of rows meets both kinds of tokens while it is in the cache.
      for (int64_t row = 0; row < count; row += kStripRows) {
        const int64_t rows = std::min(kStripRows, count - row);
        if (tokens.columns.count > 0) {
          multiply_columns(block + row * depth, depth, rows, tokens.columns, result + row,
                           result_stride);
        }
        kernels.row_major(block + row * depth, depth, rows, tokens.columns.count > 0, tokens.tiles,
                          depth, result + tokens.columns.count * result_stride + row,
                          result_stride);
      }
    }
    if (bias != nullptr) {
      for (int64_t t = 0; t < tokens.count; ++t) {
        add_row(bias + first, count, result + t * result_stride);
      }
    }
  }
};

template <typename scalar_t>
struct ExpertWeights {
  const scalar_t* gate_up;
  const scalar_t* down;
  const scalar_t* gate_up_bias;
  const scalar_t* down_bias;
  bool interleaved;
  bool transposed;

  explicit ExpertWeights(const ExpertCall& call)
      : gate_up(call.gate_up.const_data_ptr<scalar_t>()),
        down(call.down.const_data_ptr<scalar_t>()),
        gate_up_bias(data(call.gate_up_bias)),
        down_bias(data(call.down_bias)),
        interleaved(call.interleaved),
        transposed(call.transposed) {}

  Projection<scalar_t> gate_up_of(int64_t expert, const Dimensions& d) const {
    const int64_t outputs = 2 * d.intermediate;
    return {gate_up + expert * outputs * d.hidden,
            gate_up_bias == nullptr ? nullptr : gate_up_bias + expert * outputs, outputs, d.hidden,
            transposed};
  }
  Projection<scalar_t> down_of(int64_t expert, const Dimensions& d) const {
    return {down + expert * d.hidden * d.intermediate,
            down_bias == nullptr ? nullptr : down_bias + expert * d.hidden, d.hidden,
            d.intermediate, transposed};
  }

 private:
  static const scalar_t* data(const OptionalTensor& bias) {
    return bias.has_value() ? bias->const_data_ptr<scalar_t>() : nullptr;
  }
};

}  // namespace coxcompile
