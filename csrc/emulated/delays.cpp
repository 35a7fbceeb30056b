#include "delays.h"

#include "never_destroyed.h"

namespace coxcompile::emulated {

void Delays::configure(uint64_t seed, double most_seconds, double share) {
  const std::lock_guard lock(mutex_);
  seed_ = seed;
  most_seconds_ = most_seconds;
  share_ = share;
  generators_.clear();
  seconds_of_label_.clear();
}

void Delays::delay_label(const std::string& label, double seconds) {
  const std::lock_guard lock(mutex_);
  seconds_of_label_[label] = seconds;
}

double Delays::draw(c10::StreamId stream, const std::string& label) {
  const std::lock_guard lock(mutex_);
  double seconds = 0;
  if (share_ > 0) {
    std::seed_seq seed{seed_, static_cast<uint64_t>(stream)};
    auto& generator = generators_.try_emplace(stream, seed).first->second;
    std::uniform_real_distribution<double> uniform(0, 1);
    const double chance = uniform(generator), part = uniform(generator);
    seconds = chance < share_ ? part * most_seconds_ : 0;
  }
  const auto of_label = seconds_of_label_.find(label);
  return seconds + (of_label == seconds_of_label_.end() ? 0 : of_label->second);
}

Delays& delays() {
  static NeverDestroyed<Delays> state;
  return *state;
}

}  // namespace coxcompile::emulated
