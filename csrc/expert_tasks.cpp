#include "expert_tasks.h"

#include <ATen/Parallel.h>

#include <algorithm>

namespace coxcompile {
namespace {

// From so many tokens on an expert's products are bound by computing.
constexpr int64_t kManyTokens = 64;

}  // namespace

// An expert of few tokens is read faster in long runs of rows; one of many computes on blocks that
// stay in the cache. Either way there are several tasks a thread, so that none idles at the end.
std::vector<Task> plan_tasks(const Dimensions& dimensions, const Routing& routing) {
  std::vector<Task> tasks;
  const int64_t outputs = dimensions.intermediate * routing.active_experts.size();
  const int64_t outputs_per_thread = outputs / (4 * at::get_num_threads());
  const int64_t run = std::clamp<int64_t>(outputs_per_thread / 64 * 64, 64, 256);
  const auto add = [&](Task::Stage stage, int64_t expert, int64_t rows, int64_t block) {
    for (int64_t first = 0; first < rows; first += block) {
      tasks.push_back({stage, expert, first, std::min(block, rows - first)});
    }
  };
  const auto block_of = [&](int64_t expert) {
    return routing.token_count(expert) >= kManyTokens ? 96 : run;
  };
  for (const int64_t expert : routing.active_experts) {
    add(Task::Stage::gate_up, expert, dimensions.intermediate, block_of(expert));
  }
  for (const int64_t expert : routing.active_experts) {
    add(Task::Stage::down, expert, dimensions.hidden, 2 * block_of(expert));
  }
  return tasks;
}

}  // namespace coxcompile
