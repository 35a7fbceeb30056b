// coxmoe::coalesced_experts on the CPU, of stacked and of separate weights. Schemas and fake
// kernels are in coxcompile/ops.py.

#include <ATen/ATen.h>
#include <torch/library.h>

#include "expert_call.h"
#include "expert_runner.h"

namespace coxcompile {
namespace {

at::Tensor run_all(const ExpertCall& call) {
  const int64_t experts = call.dimensions.experts;
  const Routing routing = call.routing({experts, nullptr, experts});
  const auto output = at::empty(call.hidden_states.sizes(), call.hidden_states.options());
  run_experts(call, routing, Combination::replace, output);
  return output;
}

at::Tensor coalesced_experts(const at::Tensor& hidden_states, const at::Tensor& expert_ids,
                             const at::Tensor& routing_weights, const at::Tensor& gate_up,
                             const at::Tensor& down, const OptionalTensor& gate_up_bias,
                             const OptionalTensor& down_bias, c10::string_view activation,
                             c10::string_view gate_layout, bool transposed, double alpha,
                             std::optional<double> limit) {
  constexpr auto kOp = "coalesced_experts";
  const StackedWeights weights{
      gate_up, down, gate_up_bias, down_bias, is_interleaved(kOp, gate_layout), transposed};
  return run_all(checked_call(kOp, hidden_states, expert_ids, routing_weights, weights,
                              {activation, alpha, limit}));
}

at::Tensor coalesced_separate_experts(const at::Tensor& hidden_states, const at::Tensor& expert_ids,
                                      const at::Tensor& routing_weights, at::TensorList gate,
                                      at::TensorList up, at::TensorList down,
                                      std::optional<at::TensorList> gate_bias,
                                      std::optional<at::TensorList> up_bias,
                                      std::optional<at::TensorList> down_bias,
                                      c10::string_view activation, double alpha,
                                      std::optional<double> limit) {
  const auto list = [](const std::optional<at::TensorList>& biases) {
    return biases.has_value() ? std::optional(biases->vec()) : std::nullopt;
  };
  const SeparateWeights weights{gate.vec(),      up.vec(),      down.vec(),
                                list(gate_bias), list(up_bias), list(down_bias)};
  return run_all(checked_call("coalesced_experts", hidden_states, expert_ids, routing_weights,
                              weights, {activation, alpha, limit}));
}

}  // namespace
}  // namespace coxcompile

TORCH_LIBRARY_IMPL(coxmoe, CPU, m) {
  m.impl("coalesced_experts", &coxcompile::coalesced_experts);
  m.impl("coalesced_experts.separate", &coxcompile::coalesced_separate_experts);
}
