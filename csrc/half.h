// IEEE half precision, converted bit by bit so that every machine agrees with numpy's float16.
#pragma once

#include <cstdint>
#include <cstring>

namespace paretobit {

inline float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 31u;
  const uint32_t mantissa = half & 1023u;
  uint32_t bits;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24, exact in float
    const float magnitude = float(mantissa) * 0x1p-24f;
    std::memcpy(&bits, &magnitude, 4);
    bits |= sign;
  } else {
    const uint32_t wide = exponent == 31 ? 255u : exponent + 112u;
    bits = sign | wide << 23 | mantissa << 13;
  }
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

// The half that equals `value`, which is a half's already: `to_half_grid` in lanes.inl rounded it.
inline uint16_t exact_half(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000u);
  const uint32_t exponent = bits >> 23 & 255u;
  if (exponent < 113) {  // below 2^-14: a whole number of 2^-24
    const float magnitude = value < 0 ? -value : value;
    return uint16_t(sign | uint32_t(magnitude * 0x1p24f));
  }
  return uint16_t(sign | (exponent - 112u) << 10 | (bits >> 13 & 1023u));
}

inline bool half_is_finite(uint16_t half) { return (half & 0x7C00u) != 0x7C00u; }

}  // namespace paretobit
