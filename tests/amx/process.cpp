// Functions of libc that take their place under LD_PRELOAD.
#include "process.h"

#include <dlfcn.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdint>

#include "counters.h"
#include "processor.h"

namespace amx {

int set_action(int signal_number, const struct sigaction* action, struct sigaction* before) {
  static const auto found = reinterpret_cast<decltype(&set_action)>(dlsym(RTLD_NEXT, "sigaction"));
  return found(signal_number, action, before);
}

long system_call(long number, long a, long b, long c, long d, long e, long f) {
  long result;
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}

namespace {

constexpr long kGetSupported = 0x1021;   // ARCH_GET_XCOMP_SUPP
constexpr long kGetPermitted = 0x1022;   // ARCH_GET_XCOMP_PERM
constexpr long kAskPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
constexpr long kTileData = 18;           // XFEATURE_XTILEDATA

}  // namespace
}  // namespace amx

extern "C" {

// Whoever installs a SIGILL handler, as Python's faulthandler does, gets those that are not ours.
[[gnu::visibility("default")]] int sigaction(int number, const struct sigaction* action,
                                             struct sigaction* before) noexcept {
  if (number != SIGILL) {
    return amx::set_action(number, action, before);
  }
  const struct sigaction was = amx::other_handler;
  if (action != nullptr) {
    amx::other_handler = *action;
  }
  if (before != nullptr) {
    *before = was;
  }
  return 0;
}

[[gnu::visibility("default")]] sighandler_t signal(int number, sighandler_t handler) noexcept {
  struct sigaction action{};
  struct sigaction before{};
  action.sa_handler = handler;
  action.sa_flags = SA_RESTART;
  return sigaction(number, &action, &before) == 0 ? before.sa_handler : SIG_ERR;
}

// arch_prctl has no function in libc: programs come here.
[[gnu::visibility("default")]] long syscall(long number, ...) noexcept {
  va_list list;
  va_start(list, number);
  long a[6];
  for (long& argument : a) {
    argument = va_arg(list, long);
  }
  va_end(list);
  if (number == SYS_arch_prctl && a[0] == amx::kAskPermission && a[1] == amx::kTileData) {
    amx::permitted = true;
    amx::count(amx::Event::permission);
    return 0;
  }
  if (number == SYS_arch_prctl && (a[0] == amx::kGetSupported || a[0] == amx::kGetPermitted)) {
    auto* features = reinterpret_cast<uint64_t*>(a[1]);
    *features = 0;
    amx::system_call(number, a[0], a[1], 0, 0, 0, 0);  // a kernel before 5.16 knows it not
    if (a[0] == amx::kGetSupported || amx::permitted) {
      *features |= amx::kTileState;
    }
    return 0;
  }
  const long result = amx::system_call(number, a[0], a[1], a[2], a[3], a[4], a[5]);
  if (result < 0 && result > -4096) {
    errno = static_cast<int>(-result);
    return -1;
  }
  return result;
}

}  // extern "C"
