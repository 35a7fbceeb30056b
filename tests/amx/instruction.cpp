#include "instruction.h"

#include <array>
#include <cstring>
#include <optional>

namespace amx {
namespace {

constexpr std::array<int, 16> kRegisters = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP,
                                            REG_RSI, REG_RDI, REG_R8,  REG_R9,  REG_R10, REG_R11,
                                            REG_R12, REG_R13, REG_R14, REG_R15};

// The three bytes of a VEX prefix after C4, the opcode and ModRM. Register numbers have their
// extension bits, which VEX stores inverted.
struct Fields {
  int opcode;
  int prefix;  // VEX.pp: none, 66, F3, F2
  int mod;
  int reg;
  int rm;
  int index_extension;
  int vvvv;
  bool reserved;  // VEX.W or VEX.L is set, which no AMX instruction has

  explicit Fields(const uint8_t* code)
      : opcode(code[3]),
        prefix(code[2] & 3),
        mod(code[4] >> 6),
        reg((code[4] >> 3 & 7) | (code[1] & 0x80 ? 0 : 8)),
        rm((code[4] & 7) | (code[1] & 0x20 ? 0 : 8)),
        index_extension(code[1] & 0x40 ? 0 : 8),
        vvvv(~code[2] >> 3 & 15),
        reserved((code[2] & 0x84) != 0) {}

  bool in_memory() const { return mod != 3; }
};

std::optional<Event> operation_of(const Fields& fields) {
  constexpr std::array products = {Event::tdpbuud, Event::tdpbusd, Event::tdpbsud, Event::tdpbssd};
  constexpr std::array accesses = {Event::tileloaddt1, Event::tilestored, Event::tileloadd};
  if (fields.reserved) {
    return std::nullopt;
  }
  const bool registers_exist = fields.reg < 8 && fields.rm < 8 && fields.vvvv < 8;
  switch (fields.opcode) {
    case 0x49:
      if (fields.vvvv != 0) {
        return std::nullopt;
      }
      if (fields.in_memory()) {
        const bool configuration = (fields.reg & 7) == 0 && fields.prefix <= 1;
        return configuration
                   ? std::optional(fields.prefix == 0 ? Event::ldtilecfg : Event::sttilecfg)
                   : std::nullopt;
      }
      if (fields.prefix == 0 && fields.reg == 0 && fields.rm == 0) {
        return Event::tilerelease;
      }
      return fields.prefix == 3 && fields.reg < 8 && fields.rm == 0 ? std::optional(Event::tilezero)
                                                                    : std::nullopt;
    case 0x4b:  // the address of a tile always has a SIB byte
      if (fields.vvvv != 0 || !fields.in_memory() || (fields.rm & 7) != 4 || fields.reg >= 8 ||
          fields.prefix == 0) {
        return std::nullopt;
      }
      return accesses[fields.prefix - 1];
    case 0x5c:
      return !fields.in_memory() && registers_exist && fields.prefix == 2
                 ? std::optional(Event::tdpbf16ps)
                 : std::nullopt;
    default:
      return !fields.in_memory() && registers_exist ? std::optional(products[fields.prefix])
                                                    : std::nullopt;
  }
}

// Reads what follows ModRM; returns the first byte after the instruction.
const uint8_t* read_address(const uint8_t* next, const Fields& fields, const greg_t* registers,
                            Instruction& instruction) {
  uint64_t address = 0;
  bool has_base = true;
  bool relative_to_next = false;
  int base = fields.rm;
  if ((fields.rm & 7) == 4) {
    const uint8_t sib = *next++;
    const int index = (sib >> 3 & 7) | fields.index_extension;
    base = (sib & 7) | (fields.rm & 8);
    has_base = fields.mod != 0 || (sib & 7) != 5;
    if (index != 4) {
      instruction.stride =
          static_cast<int64_t>(static_cast<uint64_t>(registers[kRegisters[index]]) << (sib >> 6));
    }
  } else if (fields.mod == 0 && (fields.rm & 7) == 5) {
    has_base = false;
    relative_to_next = true;
  }
  if (has_base) {
    address = static_cast<uint64_t>(registers[kRegisters[base]]);
  }
  if (fields.mod == 1) {
    address += static_cast<int64_t>(static_cast<int8_t>(*next++));
  } else if (fields.mod == 2 || !has_base) {
    int32_t displacement;
    std::memcpy(&displacement, next, sizeof(displacement));
    next += sizeof(displacement);
    address += static_cast<int64_t>(displacement);
  }
  if (relative_to_next) {
    address += reinterpret_cast<uint64_t>(next);
  }
  if (fields.opcode == 0x49) {  // no tile: the index is a part of the address as anywhere
    address += static_cast<uint64_t>(instruction.stride);
  }
  instruction.address = address;
  return next;
}

}  // namespace

// Segment and address-size prefixes are not looked for: no compiler or JIT writes them here, and
// such an instruction would end as the SIGILL it is.
Outcome decode(const uint8_t* code, const greg_t* registers, Instruction& instruction) {
  if (code[0] != 0xc4 || (code[1] & 0x1f) != 2) {
    return Outcome::not_amx;
  }
  const Fields fields(code);
  if (fields.opcode != 0x49 && fields.opcode != 0x4b && fields.opcode != 0x5c &&
      fields.opcode != 0x5e) {
    return Outcome::not_amx;
  }
  const auto operation = operation_of(fields);
  if (!operation) {
    return Outcome::undefined;
  }
  instruction = {*operation, fields.reg, fields.rm, fields.vvvv, 0, 0, 0};
  const uint8_t* end = code + 5;
  if (fields.in_memory()) {
    end = read_address(end, fields, registers, instruction);
  }
  instruction.length = static_cast<int>(end - code);
  return Outcome::done;
}

}  // namespace amx
