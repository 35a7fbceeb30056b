#include <immintrin.h>

#include <array>
#include <cmath>
#include <cstring>

#include "tiles.h"

namespace amx {
namespace {

// AMX computes so whatever the thread's own MXCSR says: denormals are zeros, to nearest, no traps.
class TileRounding {
 public:
  TileRounding() : before_(_mm_getcsr()) { _mm_setcsr(0x9fc0); }
  ~TileRounding() { _mm_setcsr(before_); }
  TileRounding(const TileRounding&) = delete;
  TileRounding& operator=(const TileRounding&) = delete;

 private:
  unsigned before_;
};

float widened(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

}  // namespace

// The SDM's order: one chain of fused multiply-adds over the even elements of the pairs and one
// over the odd, from zero; their sum is added to the tile's.
void Tiles::multiply_bfloat16(const Instruction& instruction) {
  constexpr int lanes = kMostRowBytes / 4;
  const TileRounding rounding;
  const Tile& left = data_[instruction.second];
  const Tile& right = data_[instruction.third];
  Tile& sum = data_[instruction.first];
  for (int row = 0; row < rows_[instruction.first]; ++row) {
    alignas(64) std::array<float, lanes> even{};
    alignas(64) std::array<float, lanes> odd{};
    for (int pair = 0; pair < row_bytes_[instruction.second] / 4; ++pair) {
      uint32_t left_pair;
      std::memcpy(&left_pair, &left[row][4 * pair], sizeof(left_pair));
      std::array<uint32_t, lanes> right_pairs;
      std::memcpy(right_pairs.data(), right[pair].data(), sizeof(right_pairs));
      const float left_even = widened(left_pair << 16);
      const float left_odd = widened(left_pair & 0xffff0000u);
      for (int i = 0; i < lanes; ++i) {
        even[i] = std::fma(left_even, widened(right_pairs[i] << 16), even[i]);
        odd[i] = std::fma(left_odd, widened(right_pairs[i] & 0xffff0000u), odd[i]);
      }
    }
    std::array<float, lanes> sums;
    std::memcpy(sums.data(), sum[row].data(), sizeof(sums));
    for (int i = 0; i < lanes; ++i) {
      sums[i] += even[i] + odd[i];
    }
    std::memcpy(sum[row].data(), sums.data(), row_bytes_[instruction.first]);
  }
}

template <typename Left, typename Right>
void Tiles::multiply_bytes(const Instruction& instruction) {
  const Tile& left = data_[instruction.second];
  const Tile& right = data_[instruction.third];
  Tile& sum = data_[instruction.first];
  for (int row = 0; row < rows_[instruction.first]; ++row) {
    std::array<uint32_t, kMostRowBytes / 4> sums;  // they wrap
    std::memcpy(sums.data(), sum[row].data(), sizeof(sums));
    for (int group = 0; group < row_bytes_[instruction.second] / 4; ++group) {
      for (size_t i = 0; i < sums.size(); ++i) {
        for (int byte = 0; byte < 4; ++byte) {
          sums[i] += static_cast<uint32_t>(static_cast<Left>(left[row][4 * group + byte]) *
                                           static_cast<Right>(right[group][4 * i + byte]));
        }
      }
    }
    std::memcpy(sum[row].data(), sums.data(), row_bytes_[instruction.first]);
  }
}

void Tiles::multiply(const Instruction& instruction) {
  switch (instruction.operation) {
    case Event::tdpbf16ps:
      multiply_bfloat16(instruction);
      break;
    case Event::tdpbssd:
      multiply_bytes<int8_t, int8_t>(instruction);
      break;
    case Event::tdpbsud:
      multiply_bytes<int8_t, uint8_t>(instruction);
      break;
    case Event::tdpbusd:
      multiply_bytes<uint8_t, int8_t>(instruction);
      break;
    default:
      multiply_bytes<uint8_t, uint8_t>(instruction);
      break;
  }
}

}  // namespace amx
