#include "expert_call.h"

#include <ATen/ATen.h>

#include <limits>
#include <string_view>

namespace coxcompile {
namespace {

void check_weight(const char* op, const at::Tensor& weight, const char* name, at::ScalarType dtype,
                  at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(weight.scalar_type() == dtype, op, ": ", name, " is ", weight.scalar_type(),
                    ", but must have hidden_states' dtype ", dtype);
  TORCH_CHECK_VALUE(weight.sizes() == shape, op, ": ", name, " has shape ", weight.sizes(),
                    ", but must have shape ", shape);
  TORCH_CHECK_VALUE(weight.is_contiguous(), op, ": ", name, " has strides ", weight.strides(),
                    ", but must be contiguous; call .contiguous() on it once, before compiling");
}

}  // namespace

Routing ExpertCall::routing(const ExpertSlots& expert_slots) const {
  const auto [tokens, top_k] = std::pair(dimensions.tokens, dimensions.top_k);
  return expert_ids.scalar_type() == at::kLong
             ? route(op, expert_ids.const_data_ptr<int64_t>(), tokens, top_k, expert_slots)
             : route(op, expert_ids.const_data_ptr<int32_t>(), tokens, top_k, expert_slots);
}

ExpertCall checked_call(const char* op, const at::Tensor& hidden_states,
                        const at::Tensor& expert_ids, const at::Tensor& routing_weights,
                        const at::Tensor& gate_up, const at::Tensor& down,
                        const OptionalTensor& gate_up_bias, const OptionalTensor& down_bias,
                        c10::string_view activation, c10::string_view gate_layout, bool transposed,
                        double alpha, std::optional<double> limit) {
  const auto dtype = hidden_states.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kBFloat16 || dtype == at::kHalf, op,
                    ": hidden_states is ", dtype, ", but must be float32, bfloat16 or float16");
  TORCH_CHECK_VALUE(hidden_states.dim() == 2, op, ": hidden_states has shape ",
                    hidden_states.sizes(), ", but must be [tokens, hidden]");
  TORCH_CHECK_VALUE(expert_ids.dim() == 2 && expert_ids.size(0) == hidden_states.size(0), op,
                    ": expert_ids has shape ", expert_ids.sizes(), ", but must be [",
                    hidden_states.size(0), ", top_k]");
  TORCH_CHECK_VALUE(expert_ids.scalar_type() == at::kLong || expert_ids.scalar_type() == at::kInt,
                    op, ": expert_ids is ", expert_ids.scalar_type(),
                    ", but must be int64 or int32");
  TORCH_CHECK_VALUE(routing_weights.sizes() == expert_ids.sizes(), op,
                    ": routing_weights has shape ", routing_weights.sizes(),
                    ", but must have expert_ids' shape ", expert_ids.sizes());
  TORCH_CHECK_VALUE(at::isFloatingType(routing_weights.scalar_type()), op, ": routing_weights is ",
                    routing_weights.scalar_type(), ", but must be of a floating-point dtype");
  TORCH_CHECK_VALUE(
      gate_up.dim() == 3 && gate_up.size(transposed ? 2 : 1) % 2 == 0, op, ": gate_up has shape ",
      gate_up.sizes(), ", but must be ",
      transposed ? "[experts, hidden, 2 * intermediate]" : "[experts, 2 * intermediate, hidden]");
  TORCH_CHECK_VALUE(gate_layout == "concatenated" || gate_layout == "interleaved", op,
                    ": gate_layout is '", gate_layout,
                    "', but must be 'concatenated' or 'interleaved'");
  const Dimensions d{hidden_states.size(0), expert_ids.size(1), gate_up.size(0),
                     hidden_states.size(1), gate_up.size(transposed ? 2 : 1) / 2};
  const Activation checked_activation{
      activation_kind(op, std::string_view(activation.data(), activation.size())),
      static_cast<float>(alpha),
      static_cast<float>(limit.value_or(std::numeric_limits<double>::infinity()))};
  if (transposed) {
    check_weight(op, gate_up, "gate_up", dtype, {d.experts, d.hidden, 2 * d.intermediate});
    check_weight(op, down, "down", dtype, {d.experts, d.intermediate, d.hidden});
  } else {
    check_weight(op, gate_up, "gate_up", dtype, {d.experts, 2 * d.intermediate, d.hidden});
    check_weight(op, down, "down", dtype, {d.experts, d.hidden, d.intermediate});
  }
  if (gate_up_bias.has_value()) {
    check_weight(op, *gate_up_bias, "gate_up_bias", dtype, {d.experts, 2 * d.intermediate});
  }
  if (down_bias.has_value()) {
    check_weight(op, *down_bias, "down_bias", dtype, {d.experts, d.hidden});
  }
  return {op,
          d,
          hidden_states.contiguous(),
          expert_ids.contiguous(),
          routing_weights.to(at::kFloat).contiguous(),
          gate_up,
          down,
          gate_up_bias,
          down_bias,
          checked_activation,
          gate_layout == "interleaved",
          transposed};
}

}  // namespace coxcompile
