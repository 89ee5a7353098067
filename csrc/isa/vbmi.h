// AVX-512 with VNNI and VBMI, whose byte permutation looks a ternary byte's digits up in tables.
#include "vnni.h"

#define PARETOBIT_TRITS
struct Trits {
  Bytes four, last;

  PARETOBIT_MEMBER explicit Trits(const uint8_t* from) {
    const __m512i index = _mm512_loadu_si512(from);
    four.part[0] = (Octets)look_up(kTritTables.four.data(), index);
    last.part[0] = (Octets)look_up(kTritTables.last.data(), index);
  }

  template <int kQuad>
  PARETOBIT_MEMBER Bytes digit() const {
    if constexpr (kQuad < 4) return field<2 * kQuad, 3>(four);
    return last;
  }

 private:
  static PARETOBIT_MEMBER __m512i look_up(const uint8_t* table, __m512i index) {
    const auto part = [&](int i) PARETOBIT_LAMBDA { return _mm512_load_si512(table + 64 * i); };
    return _mm512_mask_blend_epi8(_mm512_movepi8_mask(index), _mm512_permutex2var_epi8(part(0), index, part(1)),
                                  _mm512_permutex2var_epi8(part(2), index, part(3)));
  }
};
