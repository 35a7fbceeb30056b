#include "link.h"

#include <algorithm>

#include "never_destroyed.h"

namespace coxcompile::emulated {
namespace {

constexpr double kPieceSeconds = 0.5e-3;

}  // namespace

void Link::configure(std::optional<LinkSpeed> speed) {
  const std::lock_guard lock(mutex_);
  speed_ = speed;
}

Interval Link::transfer(double ready, int64_t bytes, int priority) {
  std::unique_lock lock(mutex_);
  if (!speed_.has_value() || bytes <= 0) {
    return {ready, ready};
  }
  const Turn turn{priority, transfers_++};
  double remaining =
      speed_->latency_seconds + static_cast<double>(bytes) / speed_->bytes_per_second;
  turns_.insert(turn);
  Interval whole{ready, ready};
  for (bool first = true; remaining > 0; first = false) {
    const double seconds = std::min(remaining, kPieceSeconds);
    const Interval piece = occupy(lock, whole.end, seconds, turn);
    whole = {first ? piece.begin : whole.begin, piece.end};
    remaining -= seconds;
  }
  turns_.erase(turn);
  freed_.notify_all();
  return whole;
}

Interval Link::occupy(std::unique_lock<std::mutex>& lock, double ready, double seconds, Turn turn) {
  freed_.wait(lock, [&] { return !busy_ && *turns_.begin() == turn; });
  busy_ = true;
  const double begin = std::max(ready, free_at_), end = begin + seconds;
  lock.unlock();
  sleep_until(end);
  lock.lock();
  busy_ = false;
  free_at_ = end;
  freed_.notify_all();
  return {begin, end};
}

Link& link_of(Kind direction) {
  static NeverDestroyed<Link> host_to_device, device_to_host;
  return direction == Kind::kHostToDevice ? *host_to_device : *device_to_host;
}

}  // namespace coxcompile::emulated
