// One expert's projections of some of its tokens: by panels, or as columns and register tiles.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <variant>
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

// One expert's projection of `depth` inputs, in either of the two layouts.
template <typename scalar_t>
struct Projection {
  const scalar_t* weight;
  const scalar_t* bias;  // nullptr for none
  int64_t stride;        // between rows of the weight
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

  // Where the weights of an output begin.
  const scalar_t* of_output(int64_t output) const {
    return weight + output * (transposed ? 1 : stride);
  }

  // result[token][i] = outputs[first + i] for i < count, bias included. `following`: the weights
  // that will be read after these.
  void run(int64_t first, int64_t count, const scalar_t* following,
           const TokenBlock<scalar_t>& tokens, float* result, int64_t result_stride,
           std::vector<scalar_t>& panel) const {
    const auto& kernels = product_kernels<scalar_t>();
    const scalar_t* block = of_output(first);
    if (tokens.rows != nullptr) {
      multiply_by_panels(block, stride, transposed, count, depth, tokens.rows, depth, tokens.count,
                         result, result_stride, panel);
    } else if (transposed) {
      kernels.transposed(block, stride, count, tokens.tiles, depth, result, result_stride);
    } else {
      // A strip of rows meets both kinds of tokens while it is in the cache.
      for (int64_t row = 0; row < count; row += kStripRows) {
        const int64_t rows = std::min(kStripRows, count - row);
        const scalar_t* strip = block + row * stride;
        const scalar_t* after_strip = row + rows < count ? strip + rows * stride : following;
        if (tokens.columns.count > 0) {
          multiply_columns(strip, stride, rows, after_strip, tokens.columns, result + row,
                           result_stride);
          after_strip = nullptr;
        }
        kernels.row_major(strip, stride, rows, after_strip, tokens.tiles, depth,
                          result + tokens.columns.count * result_stride + row, result_stride);
      }
    }
    if (bias != nullptr) {
      for (int64_t t = 0; t < tokens.count; ++t) {
        add_row(bias + first, count, result + t * result_stride);
      }
    }
  }
};

// Where the weights of all experts lie.
template <typename scalar_t>
class ExpertWeights {
 public:
  explicit ExpertWeights(const ExpertCall& call) : dimensions_(call.dimensions) {
    addresses_.resize(dimensions_.experts);
    std::visit([&](const auto& weights) { set_addresses(weights); }, call.weights);
  }

  bool interleaved() const { return interleaved_; }

  // Concatenated: intermediate outputs each. Interleaved: gate_of has the outputs of both.
  Projection<scalar_t> gate_of(int64_t expert) const {
    return {addresses_[expert].gate, addresses_[expert].gate_bias, gate_stride_, dimensions_.hidden,
            transposed_};
  }
  Projection<scalar_t> up_of(int64_t expert) const {
    return {addresses_[expert].up, addresses_[expert].up_bias, gate_stride_, dimensions_.hidden,
            transposed_};
  }
  Projection<scalar_t> down_of(int64_t expert) const {
    return {addresses_[expert].down, addresses_[expert].down_bias,
            transposed_ ? dimensions_.hidden : dimensions_.intermediate, dimensions_.intermediate,
            transposed_};
  }

 private:
  struct Addresses {
    const scalar_t* gate = nullptr;
    const scalar_t* up = nullptr;
    const scalar_t* down = nullptr;
    const scalar_t* gate_bias = nullptr;
    const scalar_t* up_bias = nullptr;
    const scalar_t* down_bias = nullptr;
  };

  void set_addresses(const StackedWeights& weights) {
    const auto [hidden, intermediate] = std::pair(dimensions_.hidden, dimensions_.intermediate);
    interleaved_ = weights.interleaved;
    transposed_ = weights.transposed;
    gate_stride_ = transposed_ ? 2 * intermediate : hidden;
    const scalar_t* gate_up = weights.gate_up.const_data_ptr<scalar_t>();
    const scalar_t* down = weights.down.const_data_ptr<scalar_t>();
    for (int64_t expert = 0; expert < dimensions_.experts; ++expert) {
      Addresses& addresses = addresses_[expert];
      addresses.gate = gate_up + expert * 2 * intermediate * hidden;
      addresses.up = addresses.gate + (transposed_ ? intermediate : intermediate * hidden);
      addresses.down = down + expert * hidden * intermediate;
      if (weights.gate_up_bias.has_value()) {
        addresses.gate_bias =
            weights.gate_up_bias->const_data_ptr<scalar_t>() + expert * 2 * intermediate;
        addresses.up_bias = addresses.gate_bias + intermediate;
      }
      if (weights.down_bias.has_value()) {
        addresses.down_bias = weights.down_bias->const_data_ptr<scalar_t>() + expert * hidden;
      }
    }
  }

  void set_addresses(const SeparateWeights& weights) {
    gate_stride_ = dimensions_.hidden;
    const auto bias = [](const OptionalTensors& list, int64_t expert) {
      return list.has_value() ? (*list)[expert].const_data_ptr<scalar_t>() : nullptr;
    };
    for (int64_t expert = 0; expert < dimensions_.experts; ++expert) {
      addresses_[expert] = {weights.gate[expert].const_data_ptr<scalar_t>(),
                            weights.up[expert].const_data_ptr<scalar_t>(),
                            weights.down[expert].const_data_ptr<scalar_t>(),
                            bias(weights.gate_bias, expert),
                            bias(weights.up_bias, expert),
                            bias(weights.down_bias, expert)};
    }
  }

  const Dimensions dimensions_;
  std::vector<Addresses> addresses_;
  int64_t gate_stride_ = 0;
  bool interleaved_ = false;
  bool transposed_ = false;
};

}  // namespace coxcompile
