#include "processor.h"

#include <cpuid.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cstddef>

#include "counters.h"

namespace amx {
namespace {

struct Site {
  const uint8_t* code;
  Event instruction;
};

// Written by one thread before it is published by the count: the signal handler takes no locks.
std::array<Site, 4096> sites;
std::atomic<size_t> site_count{0};

constexpr unsigned bit(int number) { return 1u << number; }

struct Answer {
  unsigned eax, ebx, ecx, edx;
};

// The figures are Sapphire Rapids'. oneDNN takes its AMX kernels only where AVX512-FP16 and
// AVX-VNNI are too, so these are claimed beside AMX-TILE, -INT8 and -BF16; nothing executes
// AVX512-FP16 for a processor without, so float16 has to be kept away from oneDNN.
Answer cpuid(unsigned leaf, unsigned subleaf) {
  Answer own;
  __cpuid_count(leaf, subleaf, own.eax, own.ebx, own.ecx, own.edx);
  if (leaf == 0x0 && own.eax < 0x1e) {
    own.eax = 0x1e;
  } else if (leaf == 0x7 && subleaf == 0) {
    own.eax = own.eax < 1 ? 1 : own.eax;
    own.edx |= bit(22) | bit(23) | bit(24) | bit(25);
  } else if (leaf == 0x7 && subleaf == 1) {
    own.eax |= bit(4);
  } else if (leaf == 0xd && subleaf == 0) {
    own.eax |= static_cast<unsigned>(kTileState);
    own.ecx = 11008;
  } else if (leaf == 0xd && subleaf == 17) {
    return {64, 2752, 2, 0};
  } else if (leaf == 0xd && subleaf == 18) {
    return {8192, 2816, 6, 0};
  } else if (leaf == 0x1d) {  // the palettes: eight tiles of 16 rows of 64 bytes
    return subleaf == 0   ? Answer{1, 0, 0, 0}
           : subleaf == 1 ? Answer{8192 | 1024 << 16, 64 | 8 << 16, 16, 0}
                          : Answer{};
  } else if (leaf == 0x1e) {
    return subleaf == 0 ? Answer{0, 16 | 64 << 8, 0, 0} : Answer{};
  }
  return own;
}

}  // namespace

bool intercept(uint8_t* code) {
  const bool is_cpuid = code[0] == 0x0f && code[1] == 0xa2;
  const bool is_xgetbv = code[0] == 0x0f && code[1] == 0x01 && code[2] == 0xd0;
  const size_t next = site_count;
  if (!(is_cpuid || is_xgetbv) || next == sites.size()) {
    return false;
  }
  const auto page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t first = reinterpret_cast<uintptr_t>(code) & ~(page_bytes - 1);
  const size_t length = reinterpret_cast<uintptr_t>(code) + 2 - first;
  if (mprotect(reinterpret_cast<void*>(first), length, PROT_READ | PROT_WRITE | PROT_EXEC) != 0) {
    return false;
  }
  sites[next] = {code, is_cpuid ? Event::cpuid : Event::xgetbv};
  site_count.store(next + 1, std::memory_order_release);
  code[1] = 0x0b;  // 0F 0B is UD2
  return mprotect(reinterpret_cast<void*>(first), length, PROT_READ | PROT_EXEC) == 0;
}

bool answer(const uint8_t* code, greg_t* registers) {
  const size_t known = site_count.load(std::memory_order_acquire);
  size_t i = 0;
  while (i < known && sites[i].code != code) {
    ++i;
  }
  if (i == known) {
    return false;
  }
  count(sites[i].instruction);
  if (sites[i].instruction == Event::xgetbv) {
    const auto number = static_cast<unsigned>(registers[REG_RCX]);
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(number));
    registers[REG_RAX] = number == 0 ? low | static_cast<unsigned>(kTileState) : low;
    registers[REG_RDX] = high;
    registers[REG_RIP] += 3;
    return true;
  }
  const Answer given =
      cpuid(static_cast<unsigned>(registers[REG_RAX]), static_cast<unsigned>(registers[REG_RCX]));
  registers[REG_RAX] = given.eax;
  registers[REG_RBX] = given.ebx;
  registers[REG_RCX] = given.ecx;
  registers[REG_RDX] = given.edx;
  registers[REG_RIP] += 2;
  return true;
}

}  // namespace amx
