// AMX instructions as bytes (Intel SDM volume 2, chapter "AMX instruction set reference"; all are
// VEX-encoded in map 0F38).
#pragma once

#include <ucontext.h>

#include <cstdint>

#include "counters.h"

namespace amx {

struct Instruction {
  Event operation;
  // Tiles, as ModRM.reg, ModRM.rm and VEX.vvvv name them: for products the sum, the left and the
  // right operand; for loads, stores and zeroing the first alone.
  int first;
  int second;
  int third;
  uint64_t address;  // of the memory operand
  int64_t stride;    // bytes between the rows of a tile in memory
  int length;        // bytes
};

enum class Outcome {
  done,
  not_amx,             // some other instruction
  undefined,           // #UD on a processor with AMX too
  general_protection,  // #GP there
};

// What lies at `code`, its operands' addresses computed from `registers`.
Outcome decode(const uint8_t* code, const greg_t* registers, Instruction& instruction);

}  // namespace amx
