// GFNI moves the bits of all bytes alike. After x86.h.
#define PARETOBIT_FIELDS 1

// The matrix over GF(2) that takes bit i + shift of a byte to bit i, where mask has it; row i is byte 7 - i.
constexpr uint64_t field_matrix(int shift, int mask) {
  uint64_t matrix = 0;
  for (int i = 0; i < 8; ++i)
    if (mask >> i & 1 && i + shift >= 0 && i + shift < 8) matrix |= uint64_t(1) << (8 * (7 - i) + i + shift);
  return matrix;
}

// Every byte shifted right by kShift (left where negative), then masked.
template <int kShift, int kMask>
PARETOBIT_INLINE Octets bits(Octets v) {
  if constexpr (kShift == 0) return v & (uint8_t(kMask) - Octets{});
  return (Octets)PARETOBIT_X(gf2p8affine_epi64_epi8)((Wide)v, all_64(field_matrix(kShift, kMask)), 0);
}
