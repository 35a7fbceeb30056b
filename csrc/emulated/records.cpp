#include "records.h"

#include <utility>

#include "never_destroyed.h"

namespace coxcompile::emulated {

void Counts::reset() {
  bytes_host_to_device = 0;
  bytes_device_to_host = 0;
  launches = 0;
}

Counts& counts() {
  static NeverDestroyed<Counts> state;
  return *state;
}

void Timeline::start() {
  const std::lock_guard lock(mutex_);
  recording_ = true;
  spans_.clear();
}

void Timeline::add(Span span) {
  const std::lock_guard lock(mutex_);
  if (recording_) {
    spans_.push_back(std::move(span));
  }
}

std::vector<Span> Timeline::take() {
  const std::lock_guard lock(mutex_);
  recording_ = false;
  return std::exchange(spans_, {});
}

Timeline& timeline() {
  static NeverDestroyed<Timeline> state;
  return *state;
}

}  // namespace coxcompile::emulated
