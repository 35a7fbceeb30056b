#include "expert_tasks.h"

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

constexpr uint64_t kOneAtTheEnd = uint64_t{1} << 32;
uint64_t first_of(uint64_t ends) { return ends % kOneAtTheEnd; }
uint64_t end_of(uint64_t ends) { return ends / kOneAtTheEnd; }
uint64_t left_of(uint64_t ends) { return end_of(ends) - first_of(ends); }

}  // namespace

// An expert is cut into tasks of about equal cost; experts of few tokens may be one task.
TaskQueue::TaskQueue(Task::Stage stage, const Dimensions& dimensions, const Routing& routing,
                     int64_t threads)
    : shares_(threads) {
  const auto cost_of_row = [&](int64_t expert) {
    return routing.token_count(expert) + kTokensPerRead;
  };
  int64_t total = 0;
  for (const int64_t expert : routing.active_experts) {
    total += cost_of_row(expert);
  }
  const int64_t weights = dimensions.intermediate * dimensions.hidden;
  const int64_t task_cost = divide_up(3 * weights * total, kTasksPerThread * threads) + 1;
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
      const int64_t count = std::min(block, rows - first);
      tasks_.push_back({stage, expert, first, count, count * cost_of_row(expert)});
    }
  }
  uint64_t task = 0;
  int64_t cost = 0;
  for (int64_t share = 0; share < threads; ++share) {
    const uint64_t first = task;
    for (; task < tasks_.size() && cost < rows * total * (share + 1) / threads; ++task) {
      cost += tasks_[task].cost;
    }
    shares_[share].ends = first + kOneAtTheEnd * task;
  }
}

const Task* TaskQueue::take(int64_t thread) {
  const Task* task = take_first(shares_[thread]);
  while (task == nullptr) {
    Share* fullest = nullptr;
    uint64_t most = 0;
    for (Share& share : shares_) {
      if (const uint64_t left = left_of(share.ends.load(std::memory_order_relaxed)); left > most) {
        fullest = &share;
        most = left;
      }
    }
    if (fullest == nullptr) {
      return nullptr;
    }
    task = take_last(*fullest);
  }
  return task;
}

const Task* TaskQueue::take_first(Share& share) {
  uint64_t ends = share.ends.load(std::memory_order_relaxed);
  while (left_of(ends) > 0) {
    if (share.ends.compare_exchange_weak(ends, ends + 1, std::memory_order_relaxed)) {
      return &tasks_[first_of(ends)];
    }
  }
  return nullptr;
}

const Task* TaskQueue::take_last(Share& share) {
  uint64_t ends = share.ends.load(std::memory_order_relaxed);
  while (left_of(ends) > 0) {
    if (share.ends.compare_exchange_weak(ends, ends - kOneAtTheEnd, std::memory_order_relaxed)) {
      return &tasks_[end_of(ends) - 1];
    }
  }
  return nullptr;
}

}  // namespace coxcompile
