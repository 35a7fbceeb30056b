// The work on one layer's experts, cut into tasks that threads take from both ends of a queue.
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
};

// The tasks of one stage, those of the experts with the most tokens first. Half of the threads take
// them from the front and are bound by products, the others from the back and are bound by memory:
// threads that are all bound by the one leave the other unused.
class TaskQueue {
 public:
  TaskQueue(Task::Stage stage, const Dimensions& dimensions, const Routing& routing);

  const std::vector<Task>& tasks() const { return tasks_; }

  // nullptr if all are taken.
  const Task* take(bool from_back) {
    const size_t size = tasks_.size();
    // Whoever is let in here finds a task: no more are than there are tasks.
    if (admitted_.fetch_add(1, std::memory_order_relaxed) >= size) {
      return nullptr;
    }
    return from_back ? &tasks_[size - 1 - back_.fetch_add(1, std::memory_order_relaxed)]
                     : &tasks_[front_.fetch_add(1, std::memory_order_relaxed)];
  }

 private:
  std::vector<Task> tasks_;
  std::atomic<size_t> admitted_{0};
  std::atomic<size_t> front_{0};
  std::atomic<size_t> back_{0};
};

}  // namespace coxcompile
