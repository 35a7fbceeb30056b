#include "operation.h"

#include <utility>

namespace coxcompile::emulated {
namespace {

std::string& label_of_thread() {
  thread_local std::string label = "copy";
  return label;
}

}  // namespace

const char* name_of(Kind kind) {
  switch (kind) {
    case Kind::kMark:
      return "mark";
    case Kind::kKernel:
      return "kernel";
    case Kind::kHostFunction:
      return "host_function";
    case Kind::kHostToDevice:
      return "host_to_device";
    case Kind::kDeviceToHost:
      return "device_to_host";
    case Kind::kOnDevice:
      return "on_device";
    case Kind::kHost:
      return "host";
  }
  return "";
}

const std::string& current_label() { return label_of_thread(); }

std::string exchange_label(std::string label) {
  return std::exchange(label_of_thread(), std::move(label));
}

}  // namespace coxcompile::emulated
