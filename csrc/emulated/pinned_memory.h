// Pinned host memory: plain host memory whose addresses are known, poisoned when allocated so that
// a result read before its copy has ended shows.

#pragma once

#include <c10/core/Allocator.h>

#include <map>
#include <mutex>

#include "host_bytes.h"

namespace coxcompile::emulated {

class PinnedMemory final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override;
  c10::DeleterFnPtr raw_deleter() const override;
  void copy_data(void* destination, const void* source, size_t size) const override;

  bool contains(const void* pointer) const;

 private:
  struct Block {
    HostBytes bytes;
    size_t size;
  };

  void free(void* data);

  mutable std::mutex mutex_;
  std::map<const std::byte*, Block> blocks_;
};

PinnedMemory& pinned_memory();

}  // namespace coxcompile::emulated
