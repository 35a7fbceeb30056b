// What streams carry out.

#pragma once

#include <functional>
#include <string>

#include "clock.h"

namespace coxcompile::emulated {

enum class Kind {
  kMark,  // events and poisoning: takes no time, and runs after an error as well
  kKernel,
  kHostFunction,
  kHostToDevice,
  kDeviceToHost,
  kOnDevice,
  kHost,  // run inline on the calling thread, in no stream
};

const char* name_of(Kind kind);

struct Operation {
  Kind kind;
  std::string label;
  // Does the work of an operation that may begin at `begin`, and says when it took place. Must not
  // wait for a stream.
  std::function<Interval(double begin)> run;
};

// The label of the calling thread's copies.
const std::string& current_label();

// Returns the label until now.
std::string exchange_label(std::string label);

}  // namespace coxcompile::emulated
