// All streams of the device, and each thread's current one.

#pragma once

#include <c10/core/Stream.h>

#include <deque>
#include <memory>
#include <mutex>
#include <vector>

#include "completion.h"
#include "work_queue.h"

namespace coxcompile::emulated {

constexpr c10::DeviceType kDeviceType = c10::DeviceType::PrivateUse1;
inline const c10::Device kDevice{kDeviceType, 0};
constexpr c10::StreamId kDefaultStream = 0;

class Streams {
 public:
  Streams() { create(0); }

  // Lower numbers are more urgent. A stream lives as long as the process.
  c10::StreamId create(int priority);

  WorkQueue& queue(c10::StreamId stream);

  // A point after what has been enqueued on the stream.
  std::shared_ptr<Completion> record(c10::StreamId stream);

  // What is enqueued on the stream from now on begins after `completion`.
  void block(c10::StreamId stream, std::shared_ptr<const Completion> completion);

  // Waits for one or all streams, with the GIL released. Throws the pending error.
  void synchronize(c10::StreamId stream);
  void synchronize_all();

  // As synchronize_all, but leaves the error pending.
  void drain();

  bool idle();

  // Skips what has not begun and ends all threads, at interpreter exit.
  void shut_down();

 private:
  std::vector<WorkQueue*> all();

  std::mutex mutex_;
  std::deque<WorkQueue> queues_;
};

Streams& streams();

c10::StreamId current_stream();

// Returns the stream until now.
c10::StreamId exchange_stream(c10::StreamId stream);

// Throws where the calling thread must not wait, since it is a stream's.
void require_may_wait();

}  // namespace coxcompile::emulated
