// AVX-512 with VNNI, VBMI, whose byte permutation looks tables up, and GFNI, which moves the bits of all bytes alike.
#include "vnni.h"

#define PARETOBIT_TRIT_TABLE 1
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
PARETOBIT_INLINE Bytes field(const Bytes& a) {
  const __m512i from = (__m512i)a.part[0];
  if constexpr (kShift == 0) return Bytes{{(Octets)_mm512_and_si512(from, _mm512_set1_epi8(kMask))}};
  const __m512i matrix = _mm512_set1_epi64(int64_t(field_matrix(kShift, kMask)));
  return Bytes{{(Octets)_mm512_gf2p8affine_epi64_epi8(from, matrix, 0)}};
}

// Entry `index` of 256 bytes: two halves by seven bits, and the eighth chooses.
PARETOBIT_INLINE Bytes look_up(const uint8_t* table, const Bytes& index) {
  const __m512i at = (__m512i)index.part[0];
  const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(table), at, _mm512_load_si512(table + 64));
  const __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(table + 128), at, _mm512_load_si512(table + 192));
  return Bytes{{(Octets)_mm512_mask_blend_epi8(_mm512_movepi8_mask(at), low, high)}};
}
