// AVX-512 with VNNI, VBMI, whose byte permutation looks tables up, and GFNI, which moves the bits of all bytes alike.
#define PARETOBIT_TRIT_TABLE 1
#define PARETOBIT_NIBBLES 1
#include "vnni.h"

#include "gfni.h"

// Entry `index` of 256 bytes: two halves by seven bits, and the eighth chooses.
PARETOBIT_INLINE Bytes look_up(const uint8_t* table, const Bytes& index) {
  const __m512i at = (__m512i)index.part[0];
  const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(table), at, _mm512_load_si512(table + 64));
  const __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(table + 128), at, _mm512_load_si512(table + 192));
  return Bytes{{(Octets)_mm512_mask_blend_epi8(_mm512_movepi8_mask(at), low, high)}};
}

// Bits kMask of a, the others of b.
template <int kMask>
PARETOBIT_INLINE __m512i merge(__m512i a, __m512i b) {
  return _mm512_ternarylogic_epi64(_mm512_set1_epi8(char(kMask)), a, b, 0xCA);
}

// Permutation of bytes looks six bits up: tables of 64 entries take a nibble from three places, whatever is beside it.
struct Table {
  __m512i low[3], high[3];  // by the nibble's lowest bit
};

PARETOBIT_INLINE void spread_entries(const uint8_t* from, __m512i (&table)[3]) {
  uint8_t entries[64];
  for (int at = 0; at < 64; at += 16) std::memcpy(entries + at, from, 16);
  table[0] = _mm512_loadu_si512(entries);
  for (int shift = 1; shift < 3; ++shift)  // a mask, and one of all ones, lets GCC know that nothing is left undefined
    table[shift] = _mm512_maskz_permutexvar_epi8(~__mmask64(0), _mm512_load_si512(kSixBits.data() + 64 * (shift - 1)),
                                                 table[0]);
}

PARETOBIT_INLINE Table make_table(const uint8_t* from) {
  Table r;
  spread_entries(from, r.low);
  spread_entries(from + 16, r.high);
  return r;
}

template <int kShift>
PARETOBIT_INLINE Octets down(Octets v) {
  return (Octets)_mm512_srli_epi16((__m512i)v, kShift);
}

template <int kShift>
PARETOBIT_INLINE Octets sixth(const __m512i (&table)[3], Octets v) {
  if constexpr (kShift < 3) return (Octets)_mm512_permutexvar_epi8((__m512i)v, table[kShift]);
  return (Octets)_mm512_permutexvar_epi8(_mm512_srli_epi16((__m512i)v, kShift), table[0]);
}
template <int kShift>
PARETOBIT_INLINE Octets low(const Table& table, Octets v) {
  return sixth<kShift>(table.low, v);
}
template <int kShift>
PARETOBIT_INLINE Octets high(const Table& table, Octets v) {
  return sixth<kShift>(table.high, v);
}

template <bool kHigh>
PARETOBIT_INLINE Octets halves(Octets p, Octets v) {
  if constexpr (kHigh) return (Octets)merge<15>(_mm512_srli_epi16((__m512i)v, 4), (__m512i)p);
  return (Octets)merge<15>((__m512i)v, _mm512_slli_epi16((__m512i)p, 4));
}

// Bit i of every byte is bit from[i] of it.
constexpr uint64_t bit_matrix(const int (&from)[8]) {
  uint64_t matrix = 0;
  for (int i = 0; i < 8; ++i) matrix |= uint64_t(1) << (8 * (7 - i) + from[i]);
  return matrix;
}

PARETOBIT_INLINE Octets ends(Octets p, Octets v) {
  constexpr int kFrom[8] = {6, 7, 0, 1, 2, 3, 4, 5};
  const __m512i matrix = _mm512_set1_epi64(int64_t(bit_matrix(kFrom)));
  return (Octets)_mm512_gf2p8affine_epi64_epi8(merge<3>((__m512i)p, (__m512i)v), matrix, 0);
}

PARETOBIT_INLINE Octets middle(Octets p, Octets y, Octets v) {
  constexpr int kFrom[8] = {6, 7, 2, 3, 4, 5, 0, 1};
  const __m512i matrix = _mm512_set1_epi64(int64_t(bit_matrix(kFrom)));
  const __m512i outer = merge<3>((__m512i)p, (__m512i)v);
  return (Octets)_mm512_gf2p8affine_epi64_epi8(merge<0x3C>((__m512i)y, outer), matrix, 0);
}
