// coxmoe::coalesced_experts on the CPU. Schema and fake kernel are in coxcompile/ops.py.

#include <ATen/ATen.h>
#include <torch/library.h>

#include "expert_call.h"
#include "expert_runner.h"

namespace coxcompile {
namespace {

at::Tensor coalesced_experts(const at::Tensor& hidden_states, const at::Tensor& expert_ids,
                             const at::Tensor& routing_weights, const at::Tensor& gate_up,
                             const at::Tensor& down, const OptionalTensor& gate_up_bias,
                             const OptionalTensor& down_bias, c10::string_view activation,
                             c10::string_view gate_layout, bool transposed, double alpha,
                             std::optional<double> limit) {
  const ExpertCall call =
      checked_call("coalesced_experts", hidden_states, expert_ids, routing_weights, gate_up, down,
                   gate_up_bias, down_bias, activation, gate_layout, transposed, alpha, limit);
  const int64_t experts = call.dimensions.experts;
  const Routing routing = call.routing({experts, nullptr, experts});
  const auto output = at::empty(hidden_states.sizes(), hidden_states.options());
  run_experts(call, routing, Combination::replace, output);
  return output;
}

}  // namespace
}  // namespace coxcompile

TORCH_LIBRARY_IMPL(coxmoe, CPU, m) { m.impl("coalesced_experts", &coxcompile::coalesced_experts); }
