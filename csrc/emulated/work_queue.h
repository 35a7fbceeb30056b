// One stream: a queue of operations and the thread that carries them out in order.

#pragma once

#include <c10/core/Stream.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>

#include "operation.h"

namespace coxcompile::emulated {

class WorkQueue {
 public:
  WorkQueue(c10::StreamId id, int priority) : id_(id), priority_(priority) {}

  // Once stopped, marks run at once on the calling thread and all else is dropped.
  void enqueue(Operation operation);

  // Whether all that was enqueued has ended.
  bool idle() const;

  // Until what has been enqueued so far has ended.
  void wait() const;

  // Ends the thread after what has been enqueued.
  void stop();

  int priority() const { return priority_; }

 private:
  struct Entry {
    Operation operation;
    double enqueued_at;
  };

  void work();
  void carry_out(const Entry& entry);
  // With the delay before it, and nothing of it after an error.
  Interval run(const Operation& operation, double begin) const;

  const c10::StreamId id_;
  const int priority_;
  mutable std::mutex mutex_;
  mutable std::condition_variable changed_;
  std::deque<Entry> entries_;
  std::thread thread_;
  uint64_t enqueued_ = 0;
  uint64_t ended_ = 0;
  bool stopped_ = false;
  // When the last operation ends on the ideal clock, which no late wake-up of a thread moves.
  double ideal_end_ = 0;
};

// Whether the calling thread is a stream's. Such a one must not wait for streams.
bool on_worker();

}  // namespace coxcompile::emulated
