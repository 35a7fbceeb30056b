#include "tiles.h"

#include <algorithm>
#include <cstring>
#include <tuple>

namespace amx {
namespace {

constexpr int kConfigurationBytes = 64;
constexpr int kRowBytesAt = 16;  // in a configuration
constexpr int kRowsAt = 48;

}  // namespace

Outcome Tiles::configure(const uint8_t* source) {
  std::array<uint8_t, kConfigurationBytes> bytes;
  std::memcpy(bytes.data(), source, bytes.size());
  if (bytes[0] == 0) {
    *this = Tiles();
    return Outcome::done;
  }
  const auto is_zero = [&](int begin, int end) {
    return std::all_of(bytes.begin() + begin, bytes.begin() + end,
                       [](uint8_t b) { return b == 0; });
  };
  if (bytes[0] != 1 || !is_zero(2, kRowBytesAt) || !is_zero(32, kRowsAt) ||
      !is_zero(56, kConfigurationBytes)) {
    return Outcome::general_protection;
  }
  Tiles configured;
  configured.start_row_ = bytes[1];
  std::memcpy(configured.row_bytes_.data(), &bytes[kRowBytesAt], sizeof(configured.row_bytes_));
  std::memcpy(configured.rows_.data(), &bytes[kRowsAt], sizeof(configured.rows_));
  for (int tile = 0; tile < kTiles; ++tile) {
    const int rows = configured.rows_[tile];
    const int row_bytes = configured.row_bytes_[tile];
    if (rows > kMostRows || row_bytes > kMostRowBytes || (rows == 0) != (row_bytes == 0)) {
      return Outcome::general_protection;
    }
  }
  *this = configured;
  return Outcome::done;
}

void Tiles::store_configuration(uint8_t* destination) const {
  std::array<uint8_t, kConfigurationBytes> bytes{};
  bytes[0] = std::any_of(rows_.begin(), rows_.end(), [](uint8_t rows) { return rows != 0; });
  bytes[1] = start_row_;
  std::memcpy(&bytes[kRowBytesAt], row_bytes_.data(), sizeof(row_bytes_));
  std::memcpy(&bytes[kRowsAt], rows_.data(), sizeof(rows_));
  std::memcpy(destination, bytes.data(), bytes.size());
}

void Tiles::clear_rows_past_end(int tile) {
  std::fill(data_[tile].begin() + rows_[tile], data_[tile].end(), Tile::value_type{});
  start_row_ = 0;
}

Outcome Tiles::load(const Instruction& instruction) {
  const int tile = instruction.first;
  for (int row = start_row_; row < rows_[tile]; ++row) {
    const auto* source =
        reinterpret_cast<const uint8_t*>(instruction.address + row * instruction.stride);
    data_[tile][row] = {};
    std::memcpy(data_[tile][row].data(), source, row_bytes_[tile]);
  }
  clear_rows_past_end(tile);
  return Outcome::done;
}

Outcome Tiles::store(const Instruction& instruction) {
  const int tile = instruction.first;
  for (int row = start_row_; row < rows_[tile]; ++row) {
    auto* destination = reinterpret_cast<uint8_t*>(instruction.address + row * instruction.stride);
    std::memcpy(destination, data_[tile][row].data(), row_bytes_[tile]);
  }
  start_row_ = 0;
  return Outcome::done;
}

bool Tiles::shapes_fit(const Instruction& instruction) const {
  const auto [sum, left, right] =
      std::tuple(instruction.first, instruction.second, instruction.third);
  return sum != left && sum != right && left != right && is_configured(sum) &&
         is_configured(left) && is_configured(right) && row_bytes_[sum] % 4 == 0 &&
         row_bytes_[left] % 4 == 0 && row_bytes_[sum] == row_bytes_[right] &&
         rows_[sum] == rows_[left] && row_bytes_[left] / 4 == rows_[right];
}

Outcome Tiles::execute(const Instruction& instruction) {
  switch (instruction.operation) {
    case Event::ldtilecfg:
      return configure(reinterpret_cast<const uint8_t*>(instruction.address));
    case Event::sttilecfg:
      store_configuration(reinterpret_cast<uint8_t*>(instruction.address));
      return Outcome::done;
    case Event::tilerelease:
      *this = Tiles();
      return Outcome::done;
    case Event::tilezero:
      if (!is_configured(instruction.first)) {
        return Outcome::undefined;
      }
      data_[instruction.first] = {};
      start_row_ = 0;
      return Outcome::done;
    case Event::tileloadd:
    case Event::tileloaddt1:
      return is_configured(instruction.first) ? load(instruction) : Outcome::undefined;
    case Event::tilestored:
      return is_configured(instruction.first) ? store(instruction) : Outcome::undefined;
    default:
      break;
  }
  if (!shapes_fit(instruction)) {
    return Outcome::undefined;
  }
  multiply(instruction);
  clear_rows_past_end(instruction.first);
  return Outcome::done;
}

}  // namespace amx
