// The first error of an operation. Until it is taken no operation runs, on any stream.

#pragma once

#include <atomic>
#include <exception>
#include <mutex>
#include <optional>
#include <string>

namespace coxcompile::emulated {

class Failure {
 public:
  struct Error {
    std::string label;
    std::exception_ptr exception;
  };

  // Keeps the error, unless there is one already.
  void report(const std::string& label, std::exception_ptr exception);

  bool pending() const { return pending_; }

  // Throws c10::Error naming the operation, where an error is pending.
  void check() const;

  std::optional<Error> take();

 private:
  mutable std::mutex mutex_;
  std::atomic<bool> pending_{false};
  std::optional<Error> error_;
};

Failure& failure();

}  // namespace coxcompile::emulated
