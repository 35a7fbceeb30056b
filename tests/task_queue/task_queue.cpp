// Checks of csrc/expert_tasks.h that Python cannot make: which tasks there are, and who takes them.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <numeric>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "expert_tasks.h"
#include "memory_nodes.h"

namespace coxcompile {
namespace {

constexpr auto kStages = {Task::Stage::gate_up, Task::Stage::down};

void check(bool holds, const std::string& claim) {
  if (!holds) {
    std::fprintf(stderr, "not true: %s\n", claim.c_str());
    std::exit(1);
  }
}

Routing routing_of(const std::vector<int64_t>& token_counts) {
  Routing routing;
  routing.expert_offsets.push_back(0);
  for (size_t expert = 0; expert < token_counts.size(); ++expert) {
    routing.expert_offsets.push_back(routing.expert_offsets.back() + token_counts[expert]);
    if (token_counts[expert] > 0) {
      routing.active_experts.push_back(expert);
    }
  }
  return routing;
}

struct Case {
  std::vector<int64_t> token_counts;  // most tokens first
  int64_t hidden, intermediate, threads, nodes;

  Dimensions dimensions() const {
    return {1, 1, static_cast<int64_t>(token_counts.size()), hidden, intermediate};
  }
  TaskQueue queue(Task::Stage stage, const Routing& routing) const {
    return {stage, dimensions(), routing, threads, nodes};
  }
  int64_t rows(Task::Stage stage) const {
    return stage == Task::Stage::gate_up ? intermediate : hidden;
  }
  int64_t node_of(const Task& task) const {
    for (int64_t node = 0; node < nodes; ++node) {
      const auto [first, end] = rows_of_node(rows(task.stage), node, nodes);
      if (first <= task.first && task.first + task.count <= end) {
        return node;
      }
    }
    check(false, "a task is of one node's rows");
    return -1;
  }
};

void every_row_is_in_one_task(const Case& of, Task::Stage stage) {
  const Routing routing = routing_of(of.token_counts);
  const TaskQueue queue = of.queue(stage, routing);
  std::map<int64_t, std::vector<int>> times;
  for (const Task& task : queue.tasks()) {
    of.node_of(task);
    auto& rows = times[task.expert];
    rows.resize(of.rows(stage));
    for (int64_t row = task.first; row < task.first + task.count; ++row) {
      ++rows[row];
    }
  }
  check(of.rows(stage) == 0 || times.size() == routing.active_experts.size(),
        "experts with tokens have tasks, no others");
  for (const auto& [expert, rows] : times) {
    for (const int count : rows) {
      check(count == 1, "each row is in one task");
    }
  }
}

void one_thread_takes_each_task_once(const Case& of, Task::Stage stage) {
  const Routing routing = routing_of(of.token_counts);
  TaskQueue queue = of.queue(stage, routing);
  std::set<int64_t> shares;
  for (int64_t thread = 0; thread < of.threads; ++thread) {
    shares.insert(queue.claim_share(thread * of.nodes / of.threads));
  }
  check(static_cast<int64_t>(shares.size()) == of.threads, "no two threads have the same share");
  std::set<const Task*> taken;
  while (const Task* task = queue.take(*shares.begin())) {
    check(taken.insert(task).second, "no task is taken twice");
  }
  check(taken.size() == queue.tasks().size(), "one thread alone takes every task");
}

void threads_prefer_their_node(const Case& of, Task::Stage stage) {
  const Routing routing = routing_of(of.token_counts);
  TaskQueue queue = of.queue(stage, routing);
  std::vector<int64_t> of_node(of.nodes);
  for (const Task& task : queue.tasks()) {
    ++of_node[of.node_of(task)];
  }
  for (int64_t node = of.nodes - 1; node >= 0; --node) {
    const int64_t share = queue.claim_share(node);
    for (int64_t i = 0; i < of_node[node]; ++i) {
      const Task* task = queue.take(share);
      check(task != nullptr && of.node_of(*task) == node, "while it has any: tasks of its node");
    }
  }
  check(queue.take(0) == nullptr, "all are taken");
}

void at_once_they_take_each_task_once(const Case& of, Task::Stage stage) {
  const Routing routing = routing_of(of.token_counts);
  for (int round = 0; round < 50; ++round) {
    TaskQueue queue = of.queue(stage, routing);
    std::vector<std::vector<const Task*>> taken(of.threads);
    std::vector<std::thread> threads;
    for (int64_t thread = 0; thread < of.threads; ++thread) {
      threads.emplace_back([&, thread] {
        const int64_t share = queue.claim_share(thread * of.nodes / of.threads);
        while (const Task* task = queue.take(share)) {
          taken[thread].push_back(task);
        }
      });
    }
    std::set<const Task*> all;
    size_t count = 0;
    for (int64_t thread = 0; thread < of.threads; ++thread) {
      threads[thread].join();
      all.insert(taken[thread].begin(), taken[thread].end());
      count += taken[thread].size();
    }
    check(count == queue.tasks().size() && all.size() == count, "together: each task once");
  }
}

void shares_are_consecutive_and_cost_about_the_same() {
  const Case skewed{{900, 300, 100, 30, 10, 5, 3, 1, 1, 1}, 2048, 768, 4, 1};
  const Routing routing = routing_of(skewed.token_counts);
  TaskQueue queue = skewed.queue(Task::Stage::down, routing);
  int64_t total = 0, largest = 0;
  for (const Task& task : queue.tasks()) {
    total += task.cost;
    largest = std::max(largest, task.cost);
  }
  int64_t cost = 0;
  const int64_t share = queue.claim_share(0);
  const Task* task = queue.take(share);
  for (const Task* before = nullptr; before == nullptr || task == &queue.after(*before);
       before = task, task = queue.take(share)) {
    cost += task->cost;
  }
  check(std::abs(cost - total / 4) <= largest, "a quarter for each of four threads");
}

}  // namespace
}  // namespace coxcompile

int main() {
  using namespace coxcompile;
  std::vector<int64_t> many(128);
  std::iota(many.rbegin(), many.rend(), 0);
  const std::vector<Case> cases{
      {many, 2048, 768, 2, 1},  {many, 2048, 768, 4, 2}, {many, 96, 50, 3, 1},
      {{7}, 4096, 14336, 2, 2}, {{1, 1}, 7, 5, 4, 2},    {{300, 2, 0}, 1000, 777, 6, 3},
      {{5, 4}, 8, 0, 2, 1},     {{}, 64, 64, 2, 1},      {{9, 9}, 640, 640, 1, 2},
  };
  for (const Case& of : cases) {
    for (const Task::Stage stage : kStages) {
      every_row_is_in_one_task(of, stage);
      one_thread_takes_each_task_once(of, stage);
      threads_prefer_their_node(of, stage);
      at_once_they_take_each_task_once(of, stage);
    }
  }
  shares_are_consecutive_and_cost_about_the_same();
  return 0;
}
