#include "work_queue.h"

#include <c10/core/GradMode.h>

#include <algorithm>
#include <exception>
#include <utility>

#include "delays.h"
#include "failure.h"
#include "records.h"

namespace coxcompile::emulated {
namespace {

thread_local bool is_worker = false;

}  // namespace

bool on_worker() { return is_worker; }

void WorkQueue::enqueue(Operation operation) {
  Entry entry{std::move(operation), now()};
  {
    const std::lock_guard lock(mutex_);
    if (!stopped_) {
      if (!thread_.joinable()) {
        thread_ = std::thread([this] { work(); });
      }
      entries_.push_back(std::move(entry));
      ++enqueued_;
      changed_.notify_all();
      return;
    }
  }
  if (entry.operation.kind == Kind::kMark) {
    entry.operation.run(entry.enqueued_at);
  }
}

bool WorkQueue::idle() const {
  const std::lock_guard lock(mutex_);
  return ended_ == enqueued_;
}

void WorkQueue::wait() const {
  std::unique_lock lock(mutex_);
  const uint64_t enqueued = enqueued_;
  changed_.wait(lock, [&] { return ended_ >= enqueued; });
}

void WorkQueue::stop() {
  {
    const std::lock_guard lock(mutex_);
    stopped_ = true;
  }
  changed_.notify_all();
  if (thread_.joinable()) {
    thread_.join();
  }
}

void WorkQueue::work() {
  is_worker = true;
  c10::GradMode::set_enabled(false);
  for (;;) {
    {
      std::unique_lock lock(mutex_);
      changed_.wait(lock, [&] { return stopped_ || !entries_.empty(); });
      if (entries_.empty()) {
        return;
      }
      const Entry entry = std::move(entries_.front());
      entries_.pop_front();
      lock.unlock();
      carry_out(entry);
    }  // What the operation held is let go of before anyone learns that it has ended.
    {
      const std::lock_guard lock(mutex_);
      ++ended_;
    }
    changed_.notify_all();
  }
}

void WorkQueue::carry_out(const Entry& entry) {
  const Operation& operation = entry.operation;
  const double begin = std::max(ideal_end_, entry.enqueued_at);
  if (operation.kind == Kind::kMark) {
    ideal_end_ = operation.run(begin).end;
    return;
  }
  try {
    ideal_end_ = run(operation, begin).end;
    sleep_until(ideal_end_);
  } catch (...) {
    failure().report(operation.label, std::current_exception());
  }
}

Interval WorkQueue::run(const Operation& operation, double begin) const {
  const double delay = delays().draw(id_, operation.label);
  if (delay > 0) {
    sleep_until(now() + delay);
    begin = std::max(begin, now());
  }
  if (failure().pending() || abandoned()) {
    return {begin, begin};
  }
  const Interval interval = operation.run(begin);
  timeline().add({operation.label, id_, operation.kind, interval});
  return interval;
}

}  // namespace coxcompile::emulated
