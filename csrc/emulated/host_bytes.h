// Aligned memory of the host.

#pragma once

#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace coxcompile::emulated {

constexpr int kPoison = 0xFF;

struct FreeBytes {
  void operator()(std::byte* bytes) const { std::free(bytes); }
};

using HostBytes = std::unique_ptr<std::byte[], FreeBytes>;

// Filled with poison.
inline HostBytes poisoned_bytes(size_t size) {
  constexpr size_t kAlignment = 64;
  const size_t rounded = (size + kAlignment - 1) / kAlignment * kAlignment;
  HostBytes bytes(static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded)));
  if (bytes == nullptr) {
    throw std::bad_alloc();
  }
  std::memset(bytes.get(), kPoison, rounded);
  return bytes;
}

}  // namespace coxcompile::emulated
