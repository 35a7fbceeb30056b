// Delays put before operations, to bring out races.

#pragma once

#include <c10/core/Stream.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <random>
#include <string>

namespace coxcompile::emulated {

class Delays {
 public:
  // With probability `share` an operation waits up to `most_seconds`. What each stream draws
  // depends on the seed and the stream alone. Forgets the delays of labels.
  void configure(uint64_t seed, double most_seconds, double share);

  // Operations with this label wait `seconds`; 0 for not.
  void delay_label(const std::string& label, double seconds);

  // What the stream's next operation waits.
  double draw(c10::StreamId stream, const std::string& label);

 private:
  std::mutex mutex_;
  uint64_t seed_ = 0;
  double most_seconds_ = 0;
  double share_ = 0;
  std::map<c10::StreamId, std::mt19937_64> generators_;
  std::map<std::string, double> seconds_of_label_;
};

Delays& delays();

}  // namespace coxcompile::emulated
