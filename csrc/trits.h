// Ternary bytes by table: what trits.inl computes, for ISAs that look 256 entries up quickly.
#pragma once

#include <array>
#include <cstdint>

namespace paretobit {

// Digits 1...4 of a byte in fields of two bits.
constexpr std::array<uint8_t, 256> trit_table() {
  std::array<uint8_t, 256> table{};
  for (unsigned byte = 0; byte < 256; ++byte) {
    unsigned y = byte, fields = 0;
    for (unsigned digit = 0; digit < 4; ++digit) {
      y = (3 * y + 2) & 255;
      fields |= (3 * (y + 1) >> 8) << 2 * digit;
    }
    table[byte] = uint8_t(fields);
  }
  return table;
}

alignas(64) inline constexpr std::array<uint8_t, 256> kTritTable = trit_table();

}  // namespace paretobit
