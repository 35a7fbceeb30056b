// A call of coalesced_experts or experts_subset_: the arguments both take, checked.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "activation.h"
#include "routing.h"

namespace coxcompile {

using OptionalTensor = std::optional<at::Tensor>;

// `experts` counts those in the stacked weights.
struct Dimensions {
  int64_t tokens, top_k, experts, hidden, intermediate;
};

struct ExpertCall {
  const char* op;
  Dimensions dimensions;
  at::Tensor hidden_states;    // contiguous
  at::Tensor expert_ids;       // contiguous, int64 or int32
  at::Tensor routing_weights;  // contiguous, float32
  at::Tensor gate_up;
  at::Tensor down;
  OptionalTensor gate_up_bias;
  OptionalTensor down_bias;
  Activation activation;
  bool interleaved;
  bool transposed;

  // Throws for an expert id that is out of range.
  Routing routing(const ExpertSlots& expert_slots) const;
};

// Throws ValueError, in the name of `op`, for a wrong shape, dtype, stride or option.
ExpertCall checked_call(const char* op, const at::Tensor& hidden_states,
                        const at::Tensor& expert_ids, const at::Tensor& routing_weights,
                        const at::Tensor& gate_up, const at::Tensor& down,
                        const OptionalTensor& gate_up_bias, const OptionalTensor& down_bias,
                        c10::string_view activation, c10::string_view gate_layout, bool transposed,
                        double alpha, std::optional<double> limit);

}  // namespace coxcompile
