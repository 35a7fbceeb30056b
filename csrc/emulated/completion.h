// A point in a stream that others can wait for: what an event stands for since it was recorded.

#pragma once

#include <condition_variable>
#include <mutex>
#include <optional>

namespace coxcompile::emulated {

class Completion {
 public:
  // `time`: of the ideal clock.
  void complete(double time);

  // The time of completion, once there is one.
  double wait() const;

  std::optional<double> time() const;

 private:
  mutable std::mutex mutex_;
  mutable std::condition_variable completed_;
  std::optional<double> time_;
};

}  // namespace coxcompile::emulated
