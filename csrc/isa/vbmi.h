// AVX-512 with VNNI and VBMI, whose byte permutation looks tables up.
#include "vnni.h"

#define PARETOBIT_TRIT_TABLE 1

// Entry `index` of 256 bytes: two halves by seven bits, and the eighth chooses.
PARETOBIT_INLINE Bytes look_up(const uint8_t* table, const Bytes& index) {
  const __m512i at = (__m512i)index.part[0];
  const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(table), at, _mm512_load_si512(table + 64));
  const __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(table + 128), at, _mm512_load_si512(table + 192));
  return Bytes{{(Octets)_mm512_mask_blend_epi8(_mm512_movepi8_mask(at), low, high)}};
}
