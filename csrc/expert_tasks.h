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

// The tasks of one stage, those of the experts with the most tokens first, divided into consecutive
// shares of about equal cost. A thread takes its share in order, so that it mostly reads on where
// it has read before: to begin elsewhere costs most of a microsecond. Experts of many tokens are
// bound by products and those of few by memory; in shares of the one and of the other threads use
// both at the same time.
class TaskQueue {
 public:
  TaskQueue(Task::Stage stage, const Dimensions& dimensions, const Routing& routing,
            int64_t threads);

  const std::vector<Task>& tasks() const { return tasks_; }

  // The next task of the thread's share, or the last one of the share with the most left; nullptr
  // if all are taken.
  const Task* take(int64_t thread);

  // The one that is mostly taken next by the thread that has `task`.
  const Task& after(const Task& task) const {
    return &task == &tasks_.back() ? task : *(&task + 1);
  }

 private:
  // Both ends in one number, so that the owner and others never take the same task.
  struct alignas(64) Share {
    std::atomic<uint64_t> ends;
  };

  const Task* take_first(Share& share);
  const Task* take_last(Share& share);

  std::vector<Task> tasks_;
  std::vector<Share> shares_;
};

}  // namespace coxcompile
