// coxmoe::experts_subset_ on the CPU. Schema and fake kernel are in coxcompile/ops.py.

#include <ATen/ATen.h>
#include <torch/library.h>

#include "expert_call.h"
#include "expert_runner.h"

namespace coxcompile {
namespace {

constexpr const char* kOp = "experts_subset_";

void check_output(const at::Tensor& output, const at::Tensor& hidden_states) {
  TORCH_CHECK_VALUE(output.scalar_type() == at::kFloat, kOp, ": output is ", output.scalar_type(),
                    ", but must be float32: shares are summed before they are rounded");
  TORCH_CHECK_VALUE(output.sizes() == hidden_states.sizes(), kOp, ": output has shape ",
                    output.sizes(), ", but must have hidden_states' shape ", hidden_states.sizes());
  TORCH_CHECK_VALUE(output.is_contiguous(), kOp, ": output has strides ", output.strides(),
                    ", but must be contiguous; allocate it with torch.zeros");
}

ExpertSlots checked_slots(const at::Tensor& expert_slots, int64_t stacked) {
  TORCH_CHECK_VALUE(expert_slots.scalar_type() == at::kLong, kOp, ": expert_slots is ",
                    expert_slots.scalar_type(), ", but must be int64");
  TORCH_CHECK_VALUE(expert_slots.dim() == 1, kOp, ": expert_slots has shape ", expert_slots.sizes(),
                    ", but must be [experts]");
  TORCH_CHECK_VALUE(expert_slots.is_contiguous(), kOp, ": expert_slots has strides ",
                    expert_slots.strides(),
                    ", but must be contiguous; call .contiguous() on it once");
  const ExpertSlots checked{expert_slots.size(0), expert_slots.const_data_ptr<int64_t>(), stacked};
  for (int64_t expert = 0; expert < checked.experts; ++expert) {
    TORCH_CHECK_VALUE(checked.of(expert) < stacked, kOp, ": expert_slots holds slot ",
                      checked.of(expert), " for expert ", expert, ", but gate_up has ", stacked,
                      " slots; slots must lie below that, or be negative for experts elsewhere");
  }
  return checked;
}

void experts_subset_(at::Tensor& output, const at::Tensor& hidden_states,
                     const at::Tensor& expert_ids, const at::Tensor& routing_weights,
                     const at::Tensor& expert_slots, const at::Tensor& gate_up,
                     const at::Tensor& down, const OptionalTensor& gate_up_bias,
                     const OptionalTensor& down_bias, c10::string_view activation,
                     c10::string_view gate_layout, bool transposed, double alpha,
                     std::optional<double> limit) {
  const StackedWeights weights{
      gate_up, down, gate_up_bias, down_bias, is_interleaved(kOp, gate_layout), transposed};
  const ExpertCall call = checked_call(kOp, hidden_states, expert_ids, routing_weights, weights,
                                       {activation, alpha, limit});
  check_output(output, hidden_states);
  const Routing routing = call.routing(checked_slots(expert_slots, call.dimensions.experts));
  if (!routing.choices.empty()) {
    run_experts(call, routing, Combination::add, output);
  }
}

}  // namespace
}  // namespace coxcompile

TORCH_LIBRARY_IMPL(coxmoe, CPU, m) { m.impl("experts_subset_", &coxcompile::experts_subset_); }
