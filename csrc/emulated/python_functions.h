// Python functions as operations of streams, and as work of the emulated CPU.

#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "operation.h"

namespace coxcompile::emulated {

// On the current stream, holding the GIL for the call. The operation takes `seconds` from its
// begin, or as many as the function returns, or as long as the function, whatever is longer.
void enqueue_function(pybind11::function function, std::string label, double seconds, Kind kind);

// At once on the calling thread; then sleeps without the GIL as enqueue_function says.
void run_on_host(const pybind11::function& function, double seconds);

// The pending error's label and exception, once all streams have ended; None without.
pybind11::object take_error();

}  // namespace coxcompile::emulated
