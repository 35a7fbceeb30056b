// The clock of the emulated accelerator: CLOCK_MONOTONIC in seconds, which is also what Python's
// time.monotonic() and time.perf_counter() show.

#pragma once

#include <atomic>

namespace coxcompile::emulated {

// When an operation ran, on the ideal clock.
struct Interval {
  double begin;
  double end;
};

double now();

// Sleeps until `time` without spinning; at once where it has passed or the device is abandoned.
void sleep_until(double time);

// Set once, at interpreter exit: nothing sleeps any more and no further operation runs.
std::atomic<bool>& abandoned();

}  // namespace coxcompile::emulated
