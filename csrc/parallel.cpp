#include "parallel.h"

#include <atomic>

#if defined(__unix__)
#include <pthread.h>
#endif

namespace coxcompile {
namespace {

std::atomic<bool> forked{false};

#if defined(__unix__)
[[maybe_unused]] const int registered =
    pthread_atfork(nullptr, nullptr, [] { forked.store(true, std::memory_order_relaxed); });
#endif

}  // namespace

bool is_forked_child() { return forked.load(std::memory_order_relaxed); }

}  // namespace coxcompile
