// Host memory posing as the device's, filled with 0xFF bytes (NaN, or -1) whenever it holds
// nothing, so that what reads it too early or too late shows.

#pragma once

#include <c10/core/CachingDeviceAllocator.h>

#include <atomic>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <unordered_map>

#include "host_bytes.h"

namespace coxcompile::emulated {

// Freeing follows streams as in CUDA's caching allocator: the bytes stop counting at once, and are
// poisoned when the stream of their allocation, and all streams they were recorded on, have come
// to the point of freeing. Then they serve the same stream again. The operating system gets them
// back only while nothing is enqueued, so that a program with a race reads poison or other
// tensors' values, but never crashes.
class DeviceMemory final : public c10::DeviceAllocator {
 public:
  // Throws c10::OutOfMemoryError beyond the limit.
  c10::DataPtr allocate(size_t size) override;
  c10::DeleterFnPtr raw_deleter() const override;
  void copy_data(void* destination, const void* source, size_t size) const override;

  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t pool = {0, 0}) override;
  void recordStream(const c10::DataPtr& pointer, c10::Stream stream) override;
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex device) override;
  void resetAccumulatedStats(c10::DeviceIndex) override {}
  void resetPeakStats(c10::DeviceIndex device) override;
  // Free and all bytes.
  std::pair<size_t, size_t> getMemoryInfo(c10::DeviceIndex device) override;

  void limit(int64_t bytes);
  int64_t allocated_bytes() const;
  int64_t peak_bytes() const;

  // Gives unused memory back to the operating system, if no stream has anything to do.
  void release_spare();

 private:
  struct Block {
    HostBytes bytes;
    int64_t capacity = 0;
    // Those that a tensor asked for.
    int64_t size = 0;
    c10::StreamId stream = 0;
    std::set<c10::StreamId> recorded;
  };
  // Of one stream, by capacity.
  using Spare = std::multimap<int64_t, Block>;

  void free(void* data);
  // From the stream's spare blocks, or new; poisoned.
  Block find_block(int64_t size, c10::StreamId stream);
  void poison(Block block);

  mutable std::mutex mutex_;
  int64_t limit_ = std::numeric_limits<int64_t>::max();
  int64_t allocated_ = 0;
  int64_t peak_ = 0;
  std::atomic<int64_t> spare_bytes_{0};
  std::unordered_map<void*, Block> used_;
  std::map<c10::StreamId, Spare> spare_;
};

DeviceMemory& device_memory();

}  // namespace coxcompile::emulated
