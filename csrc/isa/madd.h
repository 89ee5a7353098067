// x86 without VNNI: pmaddubsw adds products in pairs into 16 bits and saturates there, so sums are kept in 16 bits only
// as long as they cannot overflow: 2 · kTop · 127 a quad. Codes of 8 bits are made signed, and their sign moved over to
// the activation: 2 · 128 · 127 just fits.
#include "x86.h"

constexpr int alike(int top) { return top < 8 ? 7 : top < 32 ? 31 : top; }

struct SumPart {
  Wide narrow, wide;
};

PARETOBIT_INLINE SumPart no_sum_part() { return {no_bits(), no_bits()}; }

template <int kTop>
constexpr int kRoom = 32767 / (2 * 127 * kTop);  // quads that fit into 16 bits

PARETOBIT_INLINE void widen(Wide& wide, Wide narrow) {
  wide = PARETOBIT_X(add_epi32)(wide, PARETOBIT_X(madd_epi16)(narrow, PARETOBIT_X(set1_epi16)(1)));
}

PARETOBIT_INLINE Wide signed_pairs(Wide codes, Wide four) {
  const Wide centred = PARETOBIT_BITS(xor)(codes, PARETOBIT_X(set1_epi8)(char(0x80)));
#if PARETOBIT_WIDTH == 16
  const __mmask64 negative = _mm512_movepi8_mask(centred);
  return _mm512_maddubs_epi16(_mm512_abs_epi8(centred), _mm512_mask_sub_epi8(four, negative, no_bits(), four));
#else
  return _mm256_maddubs_epi16(_mm256_abs_epi8(centred), _mm256_sign_epi8(four, centred));
#endif
}

template <int kTop>
PARETOBIT_INLINE void add_dot(SumPart& sum, Octets codes, const Quad& quad) {
  const Wide c = (Wide)codes;
  if constexpr (kTop > 127)
    widen(sum.wide, signed_pairs(c, quad.repeated));
  else if constexpr (kRoom<kTop> == 1)
    widen(sum.wide, PARETOBIT_X(maddubs_epi16)(c, quad.repeated));
  else
    sum.narrow = PARETOBIT_X(add_epi16)(sum.narrow, PARETOBIT_X(maddubs_epi16)(c, quad.repeated));
}

template <int kTop>
PARETOBIT_INLINE void spill(SumPart& sum, int quads) {
  constexpr int kMostQuads = 16;  // of a block, but for three levels, which have room for 43
  if (kRoom<kTop> < 2 || kRoom<kTop> >= kMostQuads || quads % (kRoom<kTop> >= 4 ? 4 : 2) != 0) return;
  widen(sum.wide, sum.narrow);
  sum.narrow = no_bits();
}

template <int kTop>
PARETOBIT_INLINE Integers total(SumPart sum, int32_t correction) {
  if constexpr (kTop > 127) return (Integers)PARETOBIT_X(add_epi32)(sum.wide, PARETOBIT_X(set1_epi32)(128 * correction));
  if constexpr (kRoom<kTop> > 1) widen(sum.wide, sum.narrow);
  return (Integers)sum.wide;
}
