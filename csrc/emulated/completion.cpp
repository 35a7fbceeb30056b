#include "completion.h"

namespace coxcompile::emulated {

void Completion::complete(double time) {
  {
    const std::lock_guard lock(mutex_);
    time_ = time;
  }
  completed_.notify_all();
}

double Completion::wait() const {
  std::unique_lock lock(mutex_);
  completed_.wait(lock, [&] { return time_.has_value(); });
  return *time_;
}

std::optional<double> Completion::time() const {
  const std::lock_guard lock(mutex_);
  return time_;
}

}  // namespace coxcompile::emulated
