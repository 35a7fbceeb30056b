#include "expert_tasks.h"

#include <algorithm>
#include <utility>

#include "memory_nodes.h"
#include "products.h"

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
uint64_t first_of(uint64_t left) { return left % kOneAtTheEnd; }
uint64_t end_of(uint64_t left) { return left / kOneAtTheEnd; }
uint64_t count_of(uint64_t left) { return end_of(left) - first_of(left); }

}  // namespace

TaskQueue::TaskQueue(Task::Stage stage, const Dimensions& dimensions, const Routing& routing,
                     int64_t threads, int64_t nodes)
    : shares_(std::max(threads, nodes)), nodes_(nodes) {
  const int64_t shares = shares_.size();
  for (int64_t node = 0; node < nodes; ++node) {
    const size_t first_task = tasks_.size();
    add_tasks(stage, dimensions, routing, node, nodes);
    const int64_t first_share = shares * node / nodes, end_share = shares * (node + 1) / nodes;
    for (int64_t share = first_share; share < end_share; ++share) {
      shares_[share].node = node;
    }
    nodes_[node].next_share = first_share;
    nodes_[node].end_share = end_share;
    divide(first_task, first_share, end_share);
  }
}

// An expert's rows are cut into tasks of about equal cost; those of few tokens may be one task.
void TaskQueue::add_tasks(Task::Stage stage, const Dimensions& dimensions, const Routing& routing,
                          int64_t node, int64_t nodes) {
  const auto cost_of_row = [&](int64_t expert) {
    return routing.token_count(expert) + kTokensPerRead;
  };
  int64_t total = 0;
  for (const int64_t expert : routing.active_experts) {
    total += cost_of_row(expert);
  }
  const int64_t weights = 3 * dimensions.intermediate * dimensions.hidden;
  const int64_t most_tasks = kTasksPerThread * static_cast<int64_t>(shares_.size());
  const int64_t task_cost = divide_up(weights * total, most_tasks) + 1;
  // A row of gate_up is one of gate and one of up.
  const auto [rows, depth] = stage == Task::Stage::gate_up
                                 ? std::pair(dimensions.intermediate, 2 * dimensions.hidden)
                                 : std::pair(dimensions.hidden, dimensions.intermediate);
  const auto [begin, end] = rows_of_node(rows, node, nodes);
  for (const int64_t expert : routing.active_experts) {
    const int64_t cost = (end - begin) * depth * cost_of_row(expert);
    const int64_t pieces = std::max<int64_t>(divide_up(cost, task_cost), 1);
    const int64_t block =
        std::max(divide_up(divide_up(end - begin, pieces), kStripRows) * kStripRows, kLeastRows);
    for (int64_t first = begin; first < end; first += block) {
      const int64_t count = std::min(block, end - first);
      tasks_.push_back({stage, expert, first, count, count * cost_of_row(expert)});
    }
  }
}

void TaskQueue::divide(size_t first_task, int64_t first_share, int64_t end_share) {
  int64_t total = 0;
  for (size_t task = first_task; task < tasks_.size(); ++task) {
    total += tasks_[task].cost;
  }
  size_t task = first_task;
  int64_t cost = 0;
  for (int64_t share = first_share; share < end_share; ++share) {
    const uint64_t first = task;
    const int64_t until = total * (share + 1 - first_share) / (end_share - first_share);
    for (; task < tasks_.size() && cost < until; ++task) {
      cost += tasks_[task].cost;
    }
    shares_[share].left = first + kOneAtTheEnd * task;
  }
}

int64_t TaskQueue::claim_share(int64_t node) {
  for (size_t i = 0; i < nodes_.size(); ++i) {
    Node& from = nodes_[(node + i) % nodes_.size()];
    if (const int64_t share = from.next_share.fetch_add(1, std::memory_order_relaxed);
        share < from.end_share) {
      return share;
    }
  }
  return 0;  // threads can have the same, too
}

const Task* TaskQueue::take(int64_t share) {
  const Task* task = take_first(shares_[share]);
  while (task == nullptr) {
    Share* other = fullest(shares_[share].node);
    if (other == nullptr) {
      return nullptr;
    }
    task = take_last(*other);
  }
  return task;
}

// nullptr only if every share was found empty: empty ones stay so.
TaskQueue::Share* TaskQueue::fullest(int64_t node) {
  Share* found = nullptr;
  std::pair<bool, uint64_t> most;
  for (Share& share : shares_) {
    const uint64_t count = count_of(share.left.load(std::memory_order_relaxed));
    const std::pair<bool, uint64_t> here{share.node == node, count};
    if (count > 0 && (found == nullptr || here > most)) {
      found = &share;
      most = here;
    }
  }
  return found;
}

const Task* TaskQueue::take_first(Share& share) {
  uint64_t left = share.left.load(std::memory_order_relaxed);
  while (count_of(left) > 0) {
    if (share.left.compare_exchange_weak(left, left + 1, std::memory_order_relaxed)) {
      return &tasks_[first_of(left)];
    }
  }
  return nullptr;
}

const Task* TaskQueue::take_last(Share& share) {
  uint64_t left = share.left.load(std::memory_order_relaxed);
  while (count_of(left) > 0) {
    if (share.left.compare_exchange_weak(left, left - kOneAtTheEnd, std::memory_order_relaxed)) {
      return &tasks_[end_of(left) - 1];
    }
  }
  return nullptr;
}

}  // namespace coxcompile
