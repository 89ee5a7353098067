// Ternary bytes by table: what formats.inl computes, for ISAs that look up 256 entries faster.
#pragma once

#include <array>
#include <cstdint>

namespace paretobit {

struct TritTables {
  alignas(64) std::array<uint8_t, 256> four;  // digits 0...3 in fields of two bits
  alignas(64) std::array<uint8_t, 256> last;  // digit 4
};

constexpr TritTables trit_tables() {
  TritTables t{};
  for (unsigned byte = 0; byte < 256; ++byte) {
    unsigned y = byte;
    for (unsigned digit = 0; digit < 5; ++digit) {
      const uint8_t found = uint8_t(3 * (y + 1) >> 8);
      if (digit < 4)
        t.four[byte] = uint8_t(t.four[byte] | found << 2 * digit);
      else
        t.last[byte] = found;
      y = (3 * y + 2) & 255;
    }
  }
  return t;
}

inline constexpr TritTables kTritTables = trit_tables();

}  // namespace paretobit
