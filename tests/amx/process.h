// What stands between the process and libc: who handles SIGILL, and who may use tiles.
#pragma once

#include <signal.h>

#include <atomic>

namespace amx {

// Where SIGILLs go that are not the emulator's: what the process believes to have installed.
inline struct sigaction other_handler;

// The process has asked for tiles and was told yes.
inline std::atomic<bool> permitted{false};

// libc's sigaction, which this library's stands before.
int set_action(int signal_number, const struct sigaction* action, struct sigaction* before);

// As the kernel returns it: -errno for an error.
long system_call(long number, long a, long b, long c, long d, long e, long f);

}  // namespace amx
