#include "expert_tasks.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <utility>

#include "columns.h"

namespace coxcompile {
namespace {

// Tasks of so many strips of rows are the smallest.
constexpr int64_t kLeastRows = 2 * kStripRows;
// So many tasks a thread, so that none idles for long at the end. Not many more: each prepares its
// tokens anew, unless the thread's last task had the same.
constexpr int64_t kTasksPerThread = 16;
// Reading a weight takes as long as multiplying it by so many tokens.
constexpr int64_t kTokensPerRead = 8;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

// An expert is cut into tasks of about equal cost; experts of few tokens may be one task.
TaskQueue::TaskQueue(Task::Stage stage, const Dimensions& dimensions, const Routing& routing) {
  const auto cost_of_row = [&](int64_t expert) {
    return routing.token_count(expert) + kTokensPerRead;
  };
  int64_t total = 0;
  for (const int64_t expert : routing.active_experts) {
    total += 3 * dimensions.intermediate * dimensions.hidden * cost_of_row(expert);
  }
  const int64_t task_cost = divide_up(total, kTasksPerThread * at::get_num_threads()) + 1;
  // A row of gate_up is one of gate and one of up.
  const auto [rows, depth] = stage == Task::Stage::gate_up
                                 ? std::pair(dimensions.intermediate, 2 * dimensions.hidden)
                                 : std::pair(dimensions.hidden, dimensions.intermediate);
  for (const int64_t expert : routing.active_experts) {
    const int64_t cost = rows * depth * cost_of_row(expert);
    const int64_t pieces = std::max<int64_t>(divide_up(cost, task_cost), 1);
    const int64_t block =
        std::max(divide_up(divide_up(rows, pieces), kStripRows) * kStripRows, kLeastRows);
    for (int64_t first = 0; first < rows; first += block) {
      tasks_.push_back({stage, expert, first, std::min(block, rows - first)});
    }
  }
}

}  // namespace coxcompile
