// CPUID and XGETBV of a processor that has AMX: this one's answers, with AMX's bits added.
#pragma once

#include <ucontext.h>

#include <cstdint>

namespace amx {

// XCR0's bits of the tile configuration and the tile data.
inline constexpr uint64_t kTileState = uint64_t{3} << 17;

// Replaces the CPUID or XGETBV at `code` by an instruction that traps, so that `answer` may answer
// in its place. False if neither is there, the code cannot be written, or there are too many.
bool intercept(uint8_t* code);

// If `code` was replaced: sets the registers as the instruction would, moves past it, and returns
// true.
bool answer(const uint8_t* code, greg_t* registers);

}  // namespace amx
