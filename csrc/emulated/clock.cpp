#include "clock.h"

#include <sys/prctl.h>
#include <time.h>

#include <algorithm>
#include <cmath>

namespace coxcompile::emulated {
namespace {

// An exit waits for a sleeper no longer than this.
constexpr double kLongestSleep = 0.02;

// The kernel may otherwise add 50 µs to every sleep of a thread.
void wake_precisely() {
  thread_local const bool done = prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL) == 0;
  static_cast<void>(done);
}

}  // namespace

double now() {
  timespec time{};
  clock_gettime(CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_nsec) * 1e-9;
}

void sleep_until(double time) {
  wake_precisely();
  for (double current = now(); current < time && !abandoned(); current = now()) {
    const double wake = std::min(time, current + kLongestSleep);
    const double seconds = std::floor(wake);
    const timespec until{static_cast<time_t>(seconds), static_cast<long>((wake - seconds) * 1e9)};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, nullptr);
  }
}

std::atomic<bool>& abandoned() {
  static std::atomic<bool> flag{false};
  return flag;
}

}  // namespace coxcompile::emulated
