// The work on one layer's experts, cut into tasks that threads take in order.
#pragma once

#include <cstdint>
#include <vector>

#include "expert_call.h"
#include "routing.h"

namespace coxcompile {

struct Task {
  enum class Stage { gate_up, down } stage;
  int64_t expert;
  int64_t first;  // first intermediate (gate_up) or hidden (down) index of the block
  int64_t count;
};

// From how many tokens on an expert's projection of this depth goes by panels; zero: never.
using LeastTokensForPanels = int64_t (*)(int64_t depth);

inline bool multiplies_by_panels(const Routing& routing, int64_t expert, int64_t depth,
                                 LeastTokensForPanels least_tokens) {
  const int64_t least = least_tokens(depth);
  return least > 0 && routing.token_count(expert) >= least;
}

// Every gate_up task precedes every down task.
std::vector<Task> plan_tasks(const Dimensions& dimensions, const Routing& routing,
                             LeastTokensForPanels least_tokens);

}  // namespace coxcompile
