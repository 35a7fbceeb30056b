// The routed FFN of one layer over the whole batch, from the weights as the model stores them.
#pragma once

#include <ATen/core/Tensor.h>

#include "expert_call.h"
#include "routing.h"

namespace coxcompile {

// What becomes of a token's sum over its choices.
enum class Combination {
  replace,  // it replaces the token's output row, which has hidden_states' dtype
  add,      // it is added to the row, which is float32; tokens without choices keep theirs
};

// output [tokens, hidden], contiguous. The same bits for any number of threads.
void run_experts(const ExpertCall& call, const Routing& routing, Combination combination,
                 const at::Tensor& output);

}  // namespace coxcompile
