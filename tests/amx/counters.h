// How often what was executed, over all threads of the process.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

namespace amx {

// tests/amx/counters.py has the same names in the same order.
enum class Event : size_t {
  ldtilecfg,
  sttilecfg,
  tilerelease,
  tilezero,
  tileloadd,
  tileloaddt1,
  tilestored,
  tdpbf16ps,
  tdpbssd,
  tdpbsud,
  tdpbusd,
  tdpbuud,
  cpuid,
  xgetbv,
  permission,  // arch_prctl(ARCH_REQ_XCOMP_PERM), granted
};
inline constexpr size_t kEvents = static_cast<size_t>(Event::permission) + 1;

// Lock-free, so that a signal handler may count.
inline std::array<std::atomic<uint64_t>, kEvents> counters{};
static_assert(std::atomic<uint64_t>::is_always_lock_free);

inline void count(Event event) {
  counters[static_cast<size_t>(event)].fetch_add(1, std::memory_order_relaxed);
}

}  // namespace amx
