#include "failure.h"

#include <c10/util/Exception.h>

#include <utility>

#include "never_destroyed.h"

namespace coxcompile::emulated {
namespace {

std::string message_of(const std::exception_ptr& exception) {
  try {
    std::rethrow_exception(exception);
  } catch (const c10::Error& error) {
    return error.what_without_backtrace();
  } catch (const std::exception& error) {
    return error.what();
  } catch (...) {
    return "an exception of an unknown kind";
  }
}

}  // namespace

void Failure::report(const std::string& label, std::exception_ptr exception) {
  // A Python exception takes the GIL when it is destroyed, so none may be under the lock.
  const std::lock_guard lock(mutex_);
  if (!error_.has_value()) {
    error_ = Error{label, std::move(exception)};
    pending_ = true;
  }
}

void Failure::check() const {
  if (!pending()) {
    return;
  }
  std::unique_lock lock(mutex_);
  if (!error_.has_value()) {
    return;
  }
  const Error error = *error_;
  lock.unlock();
  TORCH_CHECK(false, "the operation '", error.label,
              "' failed on the emulated device: ", message_of(error.exception),
              "\nNothing runs on the device until take_error() is called.");
}

std::optional<Failure::Error> Failure::take() {
  const std::lock_guard lock(mutex_);
  pending_ = false;
  return std::exchange(error_, std::nullopt);
}

Failure& failure() {
  static NeverDestroyed<Failure> state;
  return *state;
}

}  // namespace coxcompile::emulated
