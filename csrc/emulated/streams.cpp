#include "streams.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <utility>

#include "failure.h"
#include "gil.h"
#include "never_destroyed.h"

namespace coxcompile::emulated {
namespace {

thread_local c10::StreamId current = kDefaultStream;

}  // namespace

c10::StreamId Streams::create(int priority) {
  const std::lock_guard lock(mutex_);
  const auto id = static_cast<c10::StreamId>(queues_.size());
  queues_.emplace_back(id, priority);
  return id;
}

WorkQueue& Streams::queue(c10::StreamId stream) {
  const std::lock_guard lock(mutex_);
  TORCH_CHECK(stream >= 0 && stream < static_cast<c10::StreamId>(queues_.size()), "stream ", stream,
              " is not one of the emulated device's, which are 0 to ", queues_.size() - 1);
  return queues_[stream];
}

std::shared_ptr<Completion> Streams::record(c10::StreamId stream) {
  auto completion = std::make_shared<Completion>();
  queue(stream).enqueue({Kind::kMark, "record", [completion](double begin) {
                           completion->complete(begin);
                           return Interval{begin, begin};
                         }});
  return completion;
}

void Streams::block(c10::StreamId stream, std::shared_ptr<const Completion> completion) {
  queue(stream).enqueue({Kind::kMark, "block", [completion = std::move(completion)](double begin) {
                           return Interval{begin, std::max(begin, completion->wait())};
                         }});
}

void Streams::synchronize(c10::StreamId stream) {
  require_may_wait();
  {
    const WithoutGil without_gil;
    queue(stream).wait();
  }
  failure().check();
}

void Streams::synchronize_all() {
  drain();
  failure().check();
}

void Streams::drain() {
  require_may_wait();
  const WithoutGil without_gil;
  for (const WorkQueue* queue : all()) {
    queue->wait();
  }
}

bool Streams::idle() {
  for (const WorkQueue* queue : all()) {
    if (!queue->idle()) {
      return false;
    }
  }
  return true;
}

void Streams::shut_down() {
  abandoned() = true;
  const WithoutGil without_gil;
  // Marks still run, so that no stream waits for another's for ever.
  for (WorkQueue* queue : all()) {
    queue->stop();
  }
}

std::vector<WorkQueue*> Streams::all() {
  const std::lock_guard lock(mutex_);
  std::vector<WorkQueue*> queues;
  for (WorkQueue& queue : queues_) {
    queues.push_back(&queue);
  }
  return queues;
}

Streams& streams() {
  static NeverDestroyed<Streams> state;
  return *state;
}

c10::StreamId current_stream() { return current; }

c10::StreamId exchange_stream(c10::StreamId stream) { return std::exchange(current, stream); }

void require_may_wait() {
  TORCH_CHECK(!on_worker(),
              "a function enqueued on the emulated device must not synchronise with it, as no CUDA "
              "host function may: enqueue what it waits for on its stream instead");
}

}  // namespace coxcompile::emulated
