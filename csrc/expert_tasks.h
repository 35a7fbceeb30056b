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

// Every gate_up task precedes every down task.
std::vector<Task> plan_tasks(const Dimensions& dimensions, const Routing& routing);

}  // namespace coxcompile
