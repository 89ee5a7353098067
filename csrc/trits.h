// Tables for ISAs that look many entries up quickly: ternary bytes, as trits.inl computes them, and nibbles.
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

// Six-bit indices of four-bit ones at bit 1, then at bit 2: entry i is i >> 1 modulo 16, then i >> 2.
constexpr std::array<uint8_t, 128> six_bits() {
  std::array<uint8_t, 128> table{};
  for (unsigned i = 0; i < 128; ++i) table[i] = uint8_t(i % 64 >> (1 + i / 64) & 15);
  return table;
}

alignas(64) inline constexpr std::array<uint8_t, 128> kSixBits = six_bits();

}  // namespace paretobit
