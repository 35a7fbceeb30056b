#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <utility>

#include "link.h"
#include "records.h"
#include "streams.h"
#include "tensors.h"

namespace coxcompile::emulated {
namespace {

thread_local bool copies_directly = false;

Kind direction_of(const at::Tensor& destination, const at::Tensor& source) {
  if (is_emulated(destination)) {
    return is_emulated(source) ? Kind::kOnDevice : Kind::kHostToDevice;
  }
  return Kind::kDeviceToHost;
}

int64_t bytes_of(const at::Tensor& tensor) {
  return tensor.numel() * static_cast<int64_t>(tensor.element_size());
}

// Both on the CPU. Contiguous copies without PyTorch's threads, of which each stream would
// otherwise start its own.
void move(const at::Tensor& destination, const at::Tensor& source) {
  if (destination.scalar_type() == source.scalar_type() && destination.sizes() == source.sizes() &&
      destination.is_contiguous() && source.is_contiguous()) {
    if (source.numel() > 0) {
      std::memmove(destination.mutable_data_ptr(), source.const_data_ptr(), source.nbytes());
    }
    return;
  }
  const at::AutoDispatchBelowADInplaceOrView without_autograd;
  destination.copy_(source);
}

void count_bytes(Kind direction, int64_t bytes) {
  if (direction == Kind::kHostToDevice) {
    counts().bytes_host_to_device += bytes;
  } else if (direction == Kind::kDeviceToHost) {
    counts().bytes_device_to_host += bytes;
  }
}

// What there is to move, known when the operation begins.
struct Transfer {
  int64_t bytes;
  std::function<void()> move;
};

// The bytes arrive at the end of the time on the link.
void enqueue_transfer(Kind direction, std::string label, std::function<Transfer()> prepare) {
  WorkQueue& queue = streams().queue(current_stream());
  auto run = [direction, priority = queue.priority(), prepare = std::move(prepare)](double begin) {
    const Transfer transfer = prepare();
    Interval interval{begin, begin};
    if (direction != Kind::kOnDevice) {
      interval = link_of(direction).transfer(begin, transfer.bytes, priority);
    }
    const double started = now();
    transfer.move();
    count_bytes(direction, transfer.bytes);
    interval.end = std::max(interval.end, interval.begin + now() - started);
    return interval;
  };
  queue.enqueue({direction, std::move(label), std::move(run)});
}

void require_same_direction(const std::vector<CopyPair>& pairs, Kind direction) {
  for (const auto& [destination, source] : pairs) {
    TORCH_CHECK_VALUE(is_emulated(destination) != is_emulated(source) &&
                          direction_of(destination, source) == direction,
                      "copy_rows: one pair goes from ", source.device(), " to ",
                      destination.device(),
                      ", but all must go from the host to the device, or all from the device to "
                      "the host, as count's side says");
    TORCH_CHECK_VALUE(
        destination.sizes() == source.sizes() && destination.scalar_type() == source.scalar_type(),
        "copy_rows: a source is ", source.scalar_type(), source.sizes(), " and its destination ",
        destination.scalar_type(), destination.sizes(), ", but must be the same");
  }
}

std::vector<CopyPair> on_host(const std::vector<CopyPair>& pairs) {
  std::vector<CopyPair> aliases;
  for (const auto& [destination, source] : pairs) {
    aliases.emplace_back(borrow(destination), borrow(source));
  }
  return aliases;
}

}  // namespace

void copy_tensor(const at::Tensor& source, const at::Tensor& destination, bool non_blocking) {
  const at::Tensor to = borrow(destination), from = borrow(source);
  if (copies_directly) {
    move(to, from);
    return;
  }
  const Kind direction = direction_of(destination, source);
  const bool blocking = !non_blocking && direction != Kind::kOnDevice;
  if (blocking) {
    require_may_wait();
  }
  enqueue_transfer(direction, current_label(), [to, from] {
    return Transfer{bytes_of(from), [&to, &from] { move(to, from); }};
  });
  if (blocking) {
    streams().synchronize(current_stream());
  }
}

void copy_rows(const std::vector<CopyPair>& rows, const at::Tensor& count,
               const std::vector<CopyPair>& whole, std::string label) {
  TORCH_CHECK_VALUE(count.scalar_type() == at::kLong && count.numel() == 1, "copy_rows: count is ",
                    count.scalar_type(), count.sizes(), ", but must be int64 [1]");
  const Kind direction = is_emulated(count) ? Kind::kDeviceToHost : Kind::kHostToDevice;
  require_same_direction(rows, direction);
  require_same_direction(whole, direction);
  int64_t most = std::numeric_limits<int64_t>::max();
  for (const auto& [destination, source] : rows) {
    TORCH_CHECK_VALUE(source.dim() > 0, "copy_rows: a source has no dimension, so no rows");
    most = std::min(most, source.size(0));
  }
  auto prepare = [rows = on_host(rows), whole = on_host(whole), count = borrow(count), most] {
    const int64_t copied_rows = *count.const_data_ptr<int64_t>();
    TORCH_CHECK_VALUE(copied_rows >= 0 && copied_rows <= most, "copy_rows: count is ", copied_rows,
                      ", but must be 0 to ", most, ", the fewest rows of a source");
    std::vector<CopyPair> pairs = whole;
    for (const auto& [destination, source] : rows) {
      pairs.emplace_back(destination.narrow(0, 0, copied_rows), source.narrow(0, 0, copied_rows));
    }
    int64_t bytes = 0;
    for (const CopyPair& pair : pairs) {
      bytes += bytes_of(pair.second);
    }
    return Transfer{bytes, [pairs = std::move(pairs)] {
                      for (const auto& [destination, source] : pairs) {
                        move(destination, source);
                      }
                    }};
  };
  enqueue_transfer(direction, std::move(label), std::move(prepare));
}

DirectCopies::DirectCopies() : before_(std::exchange(copies_directly, true)) {}

DirectCopies::~DirectCopies() { copies_directly = before_; }

}  // namespace coxcompile::emulated
