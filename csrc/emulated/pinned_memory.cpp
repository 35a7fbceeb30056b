#include "pinned_memory.h"

#include <utility>

#include "never_destroyed.h"

namespace coxcompile::emulated {

c10::DataPtr PinnedMemory::allocate(size_t size) {
  if (size == 0) {
    return {nullptr, c10::Device(c10::kCPU)};
  }
  HostBytes bytes = poisoned_bytes(size);
  std::byte* data = bytes.get();
  const std::lock_guard lock(mutex_);
  blocks_.emplace(data, Block{std::move(bytes), size});
  return {data, data, raw_deleter(), c10::Device(c10::kCPU)};
}

c10::DeleterFnPtr PinnedMemory::raw_deleter() const {
  return [](void* data) { pinned_memory().free(data); };
}

void PinnedMemory::copy_data(void* destination, const void* source, size_t size) const {
  default_copy_data(destination, source, size);
}

bool PinnedMemory::contains(const void* pointer) const {
  const auto* address = static_cast<const std::byte*>(pointer);
  const std::lock_guard lock(mutex_);
  auto after = blocks_.upper_bound(address);
  if (after == blocks_.begin()) {
    return false;
  }
  const auto& [begin, block] = *--after;
  return address < begin + block.size;
}

void PinnedMemory::free(void* data) {
  const std::lock_guard lock(mutex_);
  blocks_.erase(static_cast<const std::byte*>(data));
}

PinnedMemory& pinned_memory() {
  static NeverDestroyed<PinnedMemory> state;
  return *state;
}

}  // namespace coxcompile::emulated
