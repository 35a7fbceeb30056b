#include "device_memory.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <utility>

#include "never_destroyed.h"
#include "streams.h"

namespace coxcompile::emulated {
namespace {

constexpr int64_t kMostSpareBytes = int64_t{256} << 20;
constexpr auto kAggregate = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);

// Whether a block may serve a tensor without wasting much.
bool fits(int64_t capacity, int64_t size) { return capacity <= size + size / 4 + 4096; }

}  // namespace

c10::DataPtr DeviceMemory::allocate(size_t size) {
  const auto wanted = static_cast<int64_t>(size);
  if (wanted == 0) {
    return {nullptr, kDevice};
  }
  if (spare_bytes_ > kMostSpareBytes) {
    release_spare();
  }
  const std::lock_guard lock(mutex_);
  TORCH_CHECK_WITH(OutOfMemoryError, wanted <= limit_ - allocated_,
                   "emulated device out of memory: ", wanted, " bytes are wanted, but only ",
                   std::max<int64_t>(limit_ - allocated_, 0), " of the limit of ", limit_,
                   " bytes are free");
  Block block = find_block(wanted, current_stream());
  allocated_ += wanted;
  peak_ = std::max(peak_, allocated_);
  void* data = block.bytes.get();
  used_.emplace(data, std::move(block));
  return {data, data, raw_deleter(), kDevice};
}

c10::DeleterFnPtr DeviceMemory::raw_deleter() const {
  return [](void* data) { device_memory().free(data); };
}

void DeviceMemory::copy_data(void* destination, const void* source, size_t size) const {
  default_copy_data(destination, source, size);
}

DeviceMemory::Block DeviceMemory::find_block(int64_t size, c10::StreamId stream) {
  Block block;
  Spare& spare = spare_[stream];
  const auto found = spare.lower_bound(size);
  if (found != spare.end() && fits(found->first, size)) {
    block = std::move(found->second);
    spare.erase(found);
    spare_bytes_ -= block.capacity;
  } else {
    block.bytes = poisoned_bytes(static_cast<size_t>(size));
    block.capacity = size;
  }
  block.size = size;
  block.stream = stream;
  block.recorded = {stream};
  return block;
}

void DeviceMemory::free(void* data) {
  std::unique_lock lock(mutex_);
  Block block = std::move(used_.extract(data).mapped());
  allocated_ -= block.size;
  lock.unlock();
  // The last of the streams to come to this point poisons.
  const std::set<c10::StreamId> recorded = block.recorded;
  struct Freed {
    Block block;
    std::atomic<size_t> streams_left;
  };
  const auto freed = std::make_shared<Freed>(std::move(block), recorded.size());
  for (const c10::StreamId stream : recorded) {
    streams().queue(stream).enqueue({Kind::kMark, "free", [this, freed](double begin) {
                                       if (--freed->streams_left == 0) {
                                         poison(std::move(freed->block));
                                       }
                                       return Interval{begin, begin};
                                     }});
  }
}

void DeviceMemory::poison(Block block) {
  std::memset(block.bytes.get(), kPoison, static_cast<size_t>(block.capacity));
  const std::lock_guard lock(mutex_);
  spare_bytes_ += block.capacity;
  Spare& spare = spare_[block.stream];
  spare.emplace(block.capacity, std::move(block));
}

void DeviceMemory::emptyCache(c10::MempoolId_t) {
  streams().drain();
  release_spare();
}

void DeviceMemory::release_spare() {
  std::map<c10::StreamId, Spare> released;
  const std::lock_guard lock(mutex_);
  if (streams().idle()) {
    spare_bytes_ = 0;
    spare_.swap(released);
  }
}

void DeviceMemory::recordStream(const c10::DataPtr& pointer, c10::Stream stream) {
  const std::lock_guard lock(mutex_);
  const auto found = used_.find(pointer.get_context());
  if (found != used_.end()) {
    found->second.recorded.insert(stream.id());
  }
}

c10::CachingDeviceAllocator::DeviceStats DeviceMemory::getDeviceStats(c10::DeviceIndex) {
  const std::lock_guard lock(mutex_);
  c10::CachingDeviceAllocator::DeviceStats statistics;
  statistics.allocated_bytes[kAggregate].current = allocated_;
  statistics.allocated_bytes[kAggregate].peak = peak_;
  statistics.reserved_bytes[kAggregate].current = allocated_;
  statistics.reserved_bytes[kAggregate].peak = peak_;
  return statistics;
}

void DeviceMemory::resetPeakStats(c10::DeviceIndex) {
  const std::lock_guard lock(mutex_);
  peak_ = allocated_;
}

std::pair<size_t, size_t> DeviceMemory::getMemoryInfo(c10::DeviceIndex) {
  const std::lock_guard lock(mutex_);
  return {std::max<int64_t>(limit_ - allocated_, 0), limit_};
}

void DeviceMemory::limit(int64_t bytes) {
  const std::lock_guard lock(mutex_);
  limit_ = bytes;
}

int64_t DeviceMemory::allocated_bytes() const {
  const std::lock_guard lock(mutex_);
  return allocated_;
}

int64_t DeviceMemory::peak_bytes() const {
  const std::lock_guard lock(mutex_);
  return peak_;
}

DeviceMemory& device_memory() {
  static NeverDestroyed<DeviceMemory> state;
  return *state;
}

}  // namespace coxcompile::emulated
