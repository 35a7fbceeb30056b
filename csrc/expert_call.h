// A call of coalesced_experts or experts_subset_: the arguments all of them take, checked.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <variant>
#include <vector>

#include "activation.h"
#include "routing.h"

namespace coxcompile {

using OptionalTensor = std::optional<at::Tensor>;

// `experts` counts those in the stacked weights.
struct Dimensions {
  int64_t tokens, top_k, experts, hidden, intermediate;
};

// All experts in one tensor, whose first dimension counts them; shapes as in coxcompile/ops.py.
struct StackedWeights {
  at::Tensor gate_up;
  at::Tensor down;
  OptionalTensor gate_up_bias;
  OptionalTensor down_bias;
  bool interleaved;
  bool transposed;
};

using OptionalTensors = std::optional<std::vector<at::Tensor>>;

// A tensor for each expert: gate and up [intermediate, hidden], down [hidden, intermediate].
struct SeparateWeights {
  std::vector<at::Tensor> gate;
  std::vector<at::Tensor> up;
  std::vector<at::Tensor> down;
  OptionalTensors gate_bias;
  OptionalTensors up_bias;
  OptionalTensors down_bias;
};

struct ActivationOptions {
  c10::string_view name;
  double alpha;
  std::optional<double> limit;
};

struct ExpertCall {
  const char* op;
  Dimensions dimensions;
  at::Tensor hidden_states;            // contiguous
  at::Tensor expert_ids;               // contiguous, int64 or int32
  std::vector<float> routing_weights;  // as expert_ids
  std::variant<StackedWeights, SeparateWeights> weights;
  Activation activation;

  // Throws for an expert id that is out of range.
  Routing routing(const ExpertSlots& expert_slots) const;
};

// Throws ValueError, in the name of `op`, for a wrong shape, dtype, stride or option.
ExpertCall checked_call(const char* op, const at::Tensor& hidden_states,
                        const at::Tensor& expert_ids, const at::Tensor& routing_weights,
                        const StackedWeights& weights, const ActivationOptions& activation);
ExpertCall checked_call(const char* op, const at::Tensor& hidden_states,
                        const at::Tensor& expert_ids, const at::Tensor& routing_weights,
                        const SeparateWeights& weights, const ActivationOptions& activation);

// Whether gate and up outputs alternate. Throws for a name that is neither of the two layouts'.
bool is_interleaved(const char* op, c10::string_view gate_layout);

}  // namespace coxcompile
