#include "expert_call.h"

#include <ATen/ATen.h>

#include <limits>
#include <string>
#include <string_view>

namespace coxcompile {
namespace {

void check_weight(const char* op, const at::Tensor& weight, const std::string& name,
                  at::ScalarType dtype, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(weight.scalar_type() == dtype, op, ": ", name, " is ", weight.scalar_type(),
                    ", but must have hidden_states' dtype ", dtype);
  TORCH_CHECK_VALUE(weight.sizes() == shape, op, ": ", name, " has shape ", weight.sizes(),
                    ", but must have shape ", shape);
  TORCH_CHECK_VALUE(weight.is_contiguous(), op, ": ", name, " has strides ", weight.strides(),
                    ", but must be contiguous; call .contiguous() on it once, before compiling");
}

void check_inputs(const char* op, const at::Tensor& hidden_states, const at::Tensor& expert_ids,
                  const at::Tensor& routing_weights) {
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
}

Activation checked_activation(const char* op, const ActivationOptions& options) {
  return {activation_kind(op, std::string_view(options.name.data(), options.name.size())),
          static_cast<float>(options.alpha),
          static_cast<float>(options.limit.value_or(std::numeric_limits<double>::infinity()))};
}

// Not by Tensor::to, whose way through the dispatcher takes longer than all other checks together
// when a single token comes by.
std::vector<float> as_floats(const at::Tensor& routing_weights) {
  const at::Tensor source = routing_weights.contiguous();
  const auto copied = [&](const auto* data) {
    return std::vector<float>(data, data + source.numel());
  };
  switch (source.scalar_type()) {
    case at::kFloat:
      return copied(source.const_data_ptr<float>());
    case at::kBFloat16:
      return copied(source.const_data_ptr<at::BFloat16>());
    case at::kHalf:
      return copied(source.const_data_ptr<at::Half>());
    default:
      return copied(source.to(at::kFloat).const_data_ptr<float>());
  }
}

ExpertCall call_of(const char* op, const Dimensions& dimensions, const at::Tensor& hidden_states,
                   const at::Tensor& expert_ids, const at::Tensor& routing_weights,
                   const std::variant<StackedWeights, SeparateWeights>& weights,
                   const ActivationOptions& activation) {
  return {op,
          dimensions,
          hidden_states.contiguous(),
          expert_ids.contiguous(),
          as_floats(routing_weights),
          weights,
          checked_activation(op, activation)};
}

// One of `list` for each expert.
void check_each(const char* op, const std::vector<at::Tensor>& list, const std::string& name,
                const Dimensions& dimensions, at::ScalarType dtype, at::IntArrayRef shape) {
  TORCH_CHECK_VALUE(static_cast<int64_t>(list.size()) == dimensions.experts, op, ": ", name,
                    " holds ", list.size(), " tensors, but must hold one for each of the ",
                    dimensions.experts, " experts that gate has");
  for (size_t expert = 0; expert < list.size(); ++expert) {
    check_weight(op, list[expert], name + "[" + std::to_string(expert) + "]", dtype, shape);
  }
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
                        const StackedWeights& weights, const ActivationOptions& activation) {
  check_inputs(op, hidden_states, expert_ids, routing_weights);
  const auto dtype = hidden_states.scalar_type();
  const auto& [gate_up, down, gate_up_bias, down_bias, interleaved, transposed] = weights;
  TORCH_CHECK_VALUE(
      gate_up.dim() == 3 && gate_up.size(transposed ? 2 : 1) % 2 == 0, op, ": gate_up has shape ",
      gate_up.sizes(), ", but must be ",
      transposed ? "[experts, hidden, 2 * intermediate]" : "[experts, 2 * intermediate, hidden]");
  const Dimensions d{hidden_states.size(0), expert_ids.size(1), gate_up.size(0),
                     hidden_states.size(1), gate_up.size(transposed ? 2 : 1) / 2};
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
  return call_of(op, d, hidden_states, expert_ids, routing_weights, weights, activation);
}

ExpertCall checked_call(const char* op, const at::Tensor& hidden_states,
                        const at::Tensor& expert_ids, const at::Tensor& routing_weights,
                        const SeparateWeights& weights, const ActivationOptions& activation) {
  check_inputs(op, hidden_states, expert_ids, routing_weights);
  TORCH_CHECK_VALUE(!weights.gate.empty(), op,
                    ": gate holds no tensors, but must hold one for each expert");
  TORCH_CHECK_VALUE(weights.gate[0].dim() == 2, op, ": gate[0] has shape ", weights.gate[0].sizes(),
                    ", but must be [intermediate, hidden]");
  const Dimensions d{hidden_states.size(0), expert_ids.size(1),
                     static_cast<int64_t>(weights.gate.size()), hidden_states.size(1),
                     weights.gate[0].size(0)};
  const auto dtype = hidden_states.scalar_type();
  const auto check = [&](const std::vector<at::Tensor>& list, const char* name,
                         at::IntArrayRef shape) { check_each(op, list, name, d, dtype, shape); };
  check(weights.gate, "gate", {d.intermediate, d.hidden});
  check(weights.up, "up", {d.intermediate, d.hidden});
  check(weights.down, "down", {d.hidden, d.intermediate});
  if (weights.gate_bias.has_value()) {
    check(*weights.gate_bias, "gate_bias", {d.intermediate});
  }
  if (weights.up_bias.has_value()) {
    check(*weights.up_bias, "up_bias", {d.intermediate});
  }
  if (weights.down_bias.has_value()) {
    check(*weights.down_bias, "down_bias", {d.hidden});
  }
  return call_of(op, d, hidden_states, expert_ids, routing_weights, weights, activation);
}

bool is_interleaved(const char* op, c10::string_view gate_layout) {
  TORCH_CHECK_VALUE(gate_layout == "concatenated" || gate_layout == "interleaved", op,
                    ": gate_layout is '", gate_layout,
                    "', but must be 'concatenated' or 'interleaved'");
  return gate_layout == "interleaved";
}

}  // namespace coxcompile
