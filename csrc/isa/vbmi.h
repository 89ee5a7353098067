// AVX-512 with VNNI, VBMI, whose byte permutation looks tables up, and GFNI, which moves the bits of all bytes alike.
#define PARETOBIT_TRIT_TABLE 1
#define PARETOBIT_FIELDS 1
#define PARETOBIT_NIBBLES 1
#include "vnni.h"

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

// The index counts modulo 64, and all sixteens of the table are alike: what is above the low nibble does no harm.
PARETOBIT_INLINE Octets pick(Octets table, Octets index) {
  return (Octets)_mm512_permutexvar_epi8((__m512i)index, (__m512i)table);
}

template <int kShift>
PARETOBIT_INLINE Octets nibble(Octets v) {
  if constexpr (kShift == 0) return v;
  return (Octets)_mm512_srli_epi16((__m512i)v, kShift);
}

// Bits kMask of a, the others of b.
template <int kMask>
PARETOBIT_INLINE __m512i merge(Octets a, Octets b) {
  return _mm512_ternarylogic_epi64(_mm512_set1_epi8(char(kMask)), (__m512i)a, (__m512i)b, 0xCA);
}

PARETOBIT_INLINE Octets low_high(Octets v, Octets p) {
  return (Octets)merge<15>(v, (Octets)_mm512_slli_epi16((__m512i)p, 4));
}
PARETOBIT_INLINE Octets high_high(Octets v, Octets p) {
  return (Octets)merge<15>((Octets)_mm512_srli_epi16((__m512i)v, 4), p);
}

// Every bit of a byte's result is one bit of it: bit i is bit from[i].
constexpr uint64_t bit_matrix(const int (&from)[8]) {
  uint64_t matrix = 0;
  for (int i = 0; i < 8; ++i) matrix |= uint64_t(1) << (8 * (7 - i) + from[i]);
  return matrix;
}

PARETOBIT_INLINE Octets ends(Octets p, Octets v) {
  constexpr int kFrom[8] = {6, 7, 0, 1, 2, 3, 4, 5};
  const __m512i matrix = _mm512_set1_epi64(int64_t(bit_matrix(kFrom)));
  return (Octets)_mm512_gf2p8affine_epi64_epi8(merge<0xFC>(v, p), matrix, 0);
}

PARETOBIT_INLINE Octets middle(Octets p, Octets y, Octets x) {
  constexpr int kFrom[8] = {6, 7, 2, 3, 4, 5, 0, 1};
  const __m512i matrix = _mm512_set1_epi64(int64_t(bit_matrix(kFrom)));
  const Octets outer = (Octets)merge<0xC0>(x, p);
  return (Octets)_mm512_gf2p8affine_epi64_epi8(merge<0x3C>(y, outer), matrix, 0);
}
