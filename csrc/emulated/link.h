// One direction of the link between host and device: one resource that all streams share.

#pragma once

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <set>
#include <utility>

#include "operation.h"

namespace coxcompile::emulated {

struct LinkSpeed {
  double bytes_per_second;
  double latency_seconds;
};

class Link {
 public:
  // nullopt: transfers take no time of their own.
  void configure(std::optional<LinkSpeed> speed);

  // Occupies the link for one transfer that is ready at `ready`, and sleeps until its end. Lower
  // numbers are more urgent: a transfer gives way to a more urgent one after each piece.
  Interval transfer(double ready, int64_t bytes, int priority);

 private:
  using Turn = std::pair<int, uint64_t>;

  // For one piece, of `seconds`. The lock is released meanwhile.
  Interval occupy(std::unique_lock<std::mutex>& lock, double ready, double seconds, Turn turn);

  std::mutex mutex_;
  std::condition_variable freed_;
  std::optional<LinkSpeed> speed_;
  // Of transfers that have not ended, the next first.
  std::set<Turn> turns_;
  bool busy_ = false;
  double free_at_ = 0;
  uint64_t transfers_ = 0;
};

// Of Kind::kHostToDevice or Kind::kDeviceToHost.
Link& link_of(Kind direction);

}  // namespace coxcompile::emulated
