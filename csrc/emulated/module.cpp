// The extension coxcompile._emulated. Importing it registers nothing.

#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include <limits>
#include <optional>
#include <utility>

#include "delays.h"
#include "device_guard.h"
#include "device_memory.h"
#include "fake_cuda_guard.h"
#include "hooks.h"
#include "link.h"
#include "never_destroyed.h"
#include "python_functions.h"
#include "records.h"
#include "streams.h"
#include "tensors.h"

namespace coxcompile::emulated {
namespace {

namespace py = pybind11;

// Bytes per second, seconds of latency.
using Speed = std::optional<std::pair<double, double>>;

std::optional<LinkSpeed> link_speed(const Speed& speed) {
  return speed.has_value() ? std::optional(LinkSpeed{speed->first, speed->second}) : std::nullopt;
}

void register_device() {
  static NeverDestroyed<DeviceGuard> guard;
  static NeverDestroyed<Hooks> hooks;
  c10::SetAllocator(kDeviceType, &device_memory());
  c10::impl::registerDeviceGuard(kDeviceType, &*guard);
  at::RegisterPrivateUse1HooksInterface(&*hooks);
  register_operators();
}

void configure(std::optional<int64_t> memory_bytes, const Speed& host_to_device,
               const Speed& device_to_host, uint64_t seed, double most_seconds, double share) {
  device_memory().limit(memory_bytes.value_or(std::numeric_limits<int64_t>::max()));
  link_of(Kind::kHostToDevice).configure(link_speed(host_to_device));
  link_of(Kind::kDeviceToHost).configure(link_speed(device_to_host));
  delays().configure(seed, most_seconds, share);
}

std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t> statistics() {
  return {counts().bytes_host_to_device, counts().bytes_device_to_host, counts().launches,
          device_memory().allocated_bytes(), device_memory().peak_bytes()};
}

void reset_statistics() {
  counts().reset();
  device_memory().resetPeakStats(0);
}

py::list take_timeline() {
  py::list spans;
  for (const Span& span : timeline().take()) {
    spans.append(py::make_tuple(span.label, span.stream, name_of(span.kind), span.interval.begin,
                                span.interval.end));
  }
  return spans;
}

}  // namespace
}  // namespace coxcompile::emulated

PYBIND11_MODULE(_emulated, module) {
  using namespace coxcompile::emulated;
  module.def("register_device", &register_device);
  module.def("shut_down", [] { streams().shut_down(); });
  module.def("configure", &configure);
  module.def("delay_label", [](const std::string& label, double seconds) {
    delays().delay_label(label, seconds);
  });
  module.def("statistics", &statistics);
  module.def("reset_statistics", &reset_statistics);
  module.def("start_timeline", [] { timeline().start(); });
  module.def("take_timeline", &take_timeline);
  module.def("exchange_label", &exchange_label);
  module.def("enqueue", [](py::function function, std::string label, double seconds) {
    enqueue_function(std::move(function), std::move(label), seconds, Kind::kKernel);
  });
  module.def("host_function", [](py::function function, std::string label, double seconds) {
    enqueue_function(std::move(function), std::move(label), seconds, Kind::kHostFunction);
  });
  module.def("run_on_host", &run_on_host);
  module.def("as_host", &as_host);
  module.def("borrow", &borrow);
  module.def("copy_rows", &copy_rows);
  module.def("take_error", &take_error);
  module.def("empty_cache", [] { device_memory().emptyCache(); });
  module.def("register_fake_cuda_guard", &register_fake_cuda_guard);
}
