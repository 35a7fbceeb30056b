// The work on one layer's experts, cut into tasks that threads take from shares of their own, and,
// when these are empty, from others'.
#pragma once

#include <atomic>
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
  int64_t cost;  // beside that of the others of its stage
};

// The tasks of one stage, divided into consecutive shares of about equal cost. A thread takes its
// share in order, so that it mostly reads on where it has read before: to begin elsewhere costs
// most of a microsecond. Experts of many tokens are bound by products and those of few by memory;
// the former come first, so that threads with shares of the one and of the other use both at the
// same time. With several memory nodes each has tasks of its own, of its part of every expert's
// rows.
class TaskQueue {
 public:
  TaskQueue(Task::Stage stage, const Dimensions& dimensions, const Routing& routing,
            int64_t threads, int64_t nodes);

  const std::vector<Task>& tasks() const { return tasks_; }

  // The share of a thread on the memory node `node`, of this queue and of any other for as many
  // threads and nodes: one that no thread has yet, of this node if there is one.
  int64_t claim_share(int64_t node);

  // The next task of the share, or else the last one of the share with the most left, of the same
  // node if any has; nullptr if all are taken.
  const Task* take(int64_t share);

  // The one that is mostly taken next by the thread that has `task`.
  const Task& after(const Task& task) const {
    return &task == &tasks_.back() ? task : *(&task + 1);
  }

 private:
  struct alignas(64) Share {
    // Both in one number, so that no task is taken twice: the first and the end of what is left.
    std::atomic<uint64_t> left{0};
    int64_t node = 0;
  };
  struct alignas(64) Node {
    std::atomic<int64_t> next_share{0};
    int64_t end_share = 0;
  };

  void add_tasks(Task::Stage stage, const Dimensions& dimensions, const Routing& routing,
                 int64_t node, int64_t nodes);
  void divide(size_t first_task, int64_t first_share, int64_t end_share);
  Share* fullest(int64_t node);
  const Task* take_first(Share& share);
  const Task* take_last(Share& share);

  std::vector<Task> tasks_;
  std::vector<Share> shares_;
  std::vector<Node> nodes_;
};

}  // namespace coxcompile
