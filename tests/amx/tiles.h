// A thread's tiles, and what AMX instructions do to them (Intel SDM volume 1, chapter "Programming
// with Intel AMX").
#pragma once

#include <array>
#include <cstdint>

#include "instruction.h"

namespace amx {

inline constexpr int kTiles = 8;
inline constexpr int kMostRows = 16;
inline constexpr int kMostRowBytes = 64;

class Tiles {
 public:
  // Reads and writes the memory operand as the instruction would: a bad address is a SIGSEGV of the
  // thread that executes it.
  Outcome execute(const Instruction& instruction);

 private:
  using Tile = std::array<std::array<uint8_t, kMostRowBytes>, kMostRows>;

  bool is_configured(int tile) const { return rows_[tile] != 0; }
  Outcome configure(const uint8_t* source);
  void store_configuration(uint8_t* destination) const;
  Outcome load(const Instruction& instruction);
  Outcome store(const Instruction& instruction);
  bool shapes_fit(const Instruction& instruction) const;
  void multiply(const Instruction& instruction);
  void multiply_bfloat16(const Instruction& instruction);
  template <typename Left, typename Right>
  void multiply_bytes(const Instruction& instruction);
  void clear_rows_past_end(int tile);

  uint8_t start_row_ = 0;
  std::array<uint16_t, kTiles> row_bytes_{};
  std::array<uint8_t, kTiles> rows_{};  // 0: not configured
  alignas(64) std::array<Tile, kTiles> data_{};
};

}  // namespace amx
