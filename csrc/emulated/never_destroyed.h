// State of the whole process. Tensors and threads may outlive static destructors, so nothing runs
// them for it.

#pragma once

#include <cstddef>
#include <new>

namespace coxcompile::emulated {

template <typename State>
class NeverDestroyed {
 public:
  NeverDestroyed() { ::new (static_cast<void*>(bytes_)) State(); }
  NeverDestroyed(const NeverDestroyed&) = delete;
  NeverDestroyed& operator=(const NeverDestroyed&) = delete;

  State& operator*() { return *std::launder(reinterpret_cast<State*>(bytes_)); }

 private:
  alignas(State) std::byte bytes_[sizeof(State)];
};

}  // namespace coxcompile::emulated
