// What is recorded of operations: counts, and a timeline on demand.

#pragma once

#include <c10/core/Stream.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

#include "operation.h"

namespace coxcompile::emulated {

// Of operations that have run.
struct Counts {
  std::atomic<int64_t> bytes_host_to_device{0};
  std::atomic<int64_t> bytes_device_to_host{0};
  std::atomic<int64_t> launches{0};

  void reset();
};

Counts& counts();

// What operations outside streams have as stream.
constexpr c10::StreamId kNoStream = -1;

struct Span {
  std::string label;
  c10::StreamId stream;
  Kind kind;
  Interval interval;
};

class Timeline {
 public:
  void start();
  void add(Span span);
  // Stops recording; in the order in which operations ended.
  std::vector<Span> take();

 private:
  std::mutex mutex_;
  bool recording_ = false;
  std::vector<Span> spans_;
};

Timeline& timeline();

}  // namespace coxcompile::emulated
