#include "hooks.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "device_memory.h"
#include "pinned_memory.h"
#include "streams.h"

namespace coxcompile::emulated {

at::Device Hooks::getDeviceFromPtr(void*) const { return kDevice; }

bool Hooks::isPinnedPtr(const void* pointer) const { return pinned_memory().contains(pointer); }

c10::Allocator* Hooks::getPinnedMemoryAllocator() const { return &pinned_memory(); }

void Hooks::resizePrivateUse1Bytes(const c10::Storage& storage, size_t size) const {
  c10::DataPtr bytes = device_memory().allocate(size);
  const size_t kept = std::min(size, storage.nbytes());
  if (kept > 0) {
    streams().synchronize(current_stream());
    std::memcpy(bytes.get(), storage.data(), kept);
  }
  storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(bytes));
  storage.unsafeGetStorageImpl()->set_nbytes(size);
}

}  // namespace coxcompile::emulated
