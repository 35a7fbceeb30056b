// Executes AMX instructions on an x86-64 Linux machine without AMX: there each of them raises
// SIGILL, and a handler does what it would have done, on tiles of the thread's own. To be loaded
// with LD_PRELOAD, which lets it answer sigaction and arch_prctl. For correctness alone: a trap
// costs ten microseconds. A thread that blocks SIGILL is killed by its first AMX instruction.
#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#include <cerrno>

#include "counters.h"
#include "instruction.h"
#include "process.h"
#include "processor.h"
#include "tiles.h"

namespace amx {
namespace {

constinit thread_local Tiles tiles;

void pass_on(int signal_number, siginfo_t* information, void* context) {
  if (other_handler.sa_flags & SA_SIGINFO) {
    other_handler.sa_sigaction(signal_number, information, context);
  } else if (other_handler.sa_handler != SIG_DFL && other_handler.sa_handler != SIG_IGN) {
    other_handler.sa_handler(signal_number);
  } else {
    // The instruction faults again, without us.
    struct sigaction standard{};
    standard.sa_handler = SIG_DFL;
    set_action(signal_number, &standard, nullptr);
    if (information->si_code <= 0) {  // sent by kill or raise
      raise(signal_number);
    }
  }
}

// As Linux does: no tile data before the process has asked for permission.
Outcome execute(const Instruction& instruction) {
  const bool harmless =
      instruction.operation == Event::sttilecfg || instruction.operation == Event::tilerelease;
  return permitted || harmless ? tiles.execute(instruction) : Outcome::undefined;
}

void on_illegal_instruction(int signal_number, siginfo_t* information, void* opaque) {
  const int errno_before = errno;
  greg_t* registers = static_cast<ucontext_t*>(opaque)->uc_mcontext.gregs;
  const auto code = [&] { return reinterpret_cast<const uint8_t*>(registers[REG_RIP]); };
  if (information->si_code <= 0) {
    return pass_on(signal_number, information, opaque);
  }
  if (code()[0] == 0x0f && code()[1] == 0x0b && answer(code(), registers)) {
    return;
  }
  Outcome outcome;
  bool progressed = false;
  // AMX instructions that follow each other are executed in one trap.
  while (true) {
    Instruction instruction;
    outcome = decode(code(), registers, instruction);
    if (outcome == Outcome::done) {
      outcome = execute(instruction);
    }
    if (outcome != Outcome::done) {
      break;
    }
    count(instruction.operation);
    registers[REG_RIP] += instruction.length;
    progressed = true;
  }
  errno = errno_before;
  if (progressed) {
    return;  // what stopped it faults by itself
  }
  if (outcome == Outcome::general_protection) {  // Linux sends SIGSEGV, without an address
    siginfo_t fault{};
    fault.si_signo = SIGSEGV;
    fault.si_code = SI_KERNEL;
    system_call(SYS_rt_tgsigqueueinfo, getpid(), system_call(SYS_gettid, 0, 0, 0, 0, 0, 0), SIGSEGV,
                reinterpret_cast<long>(&fault), 0, 0);
    return;
  }
  pass_on(signal_number, information, opaque);
}

[[gnu::constructor]] void install() {
  struct sigaction ours{};
  ours.sa_sigaction = on_illegal_instruction;
  ours.sa_flags = SA_SIGINFO;  // on the thread's stack: alternate stacks are often tiny
  sigfillset(&ours.sa_mask);
  for (const int fault : {SIGSEGV, SIGBUS, SIGFPE, SIGTRAP, SIGABRT}) {
    sigdelset(&ours.sa_mask, fault);
  }
  set_action(SIGILL, &ours, &other_handler);
}

}  // namespace
}  // namespace amx

extern "C" {

// Makes the CPUID or XGETBV at `code` report AMX; 0 if it is neither or cannot be changed.
[[gnu::visibility("default")]] int amx_intercept(void* code) {
  return amx::intercept(static_cast<uint8_t*>(code));
}

// Writes as many counters as amx::Event has members.
[[gnu::visibility("default")]] void amx_read_counters(uint64_t* destination) {
  for (size_t i = 0; i < amx::kEvents; ++i) {
    destination[i] = amx::counters[i];
  }
}

}  // extern "C"
