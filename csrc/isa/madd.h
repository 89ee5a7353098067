// x86 without VNNI: pmaddubsw adds products in pairs into 16 bits and saturates there, so sums are kept in 16 bits only
// as long as they cannot overflow: 2 · kTop · 127 a quad. Codes of 8 bits are made signed, and their sign moved over to
// the activation: 2 · 128 · 127 just fits.
// PARETOBIT_WIDTH 8: AVX2; 16: AVX-512 BW.

#if PARETOBIT_WIDTH == 16
#define PARETOBIT_X(name) _mm512_##name
#define PARETOBIT_XOR _mm512_xor_si512
typedef __m512i Wide;
PARETOBIT_INLINE Wide no_bits() { return _mm512_setzero_si512(); }
#else
#define PARETOBIT_X(name) _mm256_##name
#define PARETOBIT_XOR _mm256_xor_si256
typedef __m256i Wide;
PARETOBIT_INLINE Wide no_bits() { return _mm256_setzero_si256(); }
#endif

struct SumPart {
  Wide narrow, wide;
};

struct Quad {
  Wide repeated;
};

PARETOBIT_INLINE Quad load_quad(const int8_t* from) {
  int32_t four;
  std::memcpy(&four, from, 4);
  return Quad{PARETOBIT_X(set1_epi32)(four)};
}

PARETOBIT_INLINE SumPart no_sum_part() { return {no_bits(), no_bits()}; }

template <int kTop>
constexpr int kRoom = 32767 / (2 * 127 * kTop);  // quads that fit into 16 bits

PARETOBIT_INLINE void widen(Wide& wide, Wide narrow) {
  wide = PARETOBIT_X(add_epi32)(wide, PARETOBIT_X(madd_epi16)(narrow, PARETOBIT_X(set1_epi16)(1)));
}

PARETOBIT_INLINE Wide signed_pairs(Wide codes, Wide four) {
  const Wide centred = PARETOBIT_XOR(codes, PARETOBIT_X(set1_epi8)(char(0x80)));
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

PARETOBIT_INLINE Octets pick(Octets table, Octets index) {
  return (Octets)PARETOBIT_X(shuffle_epi8)((Wide)table, (Wide)index);
}

template <int kLanes>
PARETOBIT_INLINE Octets previous(Octets before, Octets v) {
#if PARETOBIT_WIDTH == 16
  return (Octets)_mm512_alignr_epi32((Wide)v, (Wide)before, 16 - kLanes);
#else
  const Wide between = _mm256_permute2x128_si256((Wide)before, (Wide)v, 0x21);
  return (Octets)_mm256_alignr_epi8((Wide)v, between, 16 - 4 * kLanes);
#endif
}

PARETOBIT_INLINE Lanes from_half(const uint16_t* from) {
  Lanes r;
#if PARETOBIT_WIDTH == 16
  r.part[0] = (Register)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from));
#else
  PARETOBIT_EACH r.part[p] = (Register)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)from + p));
#endif
  return r;
}

PARETOBIT_INLINE Bytes average(const Bytes& a, const Bytes& b) {
  Bytes r;
  PARETOBIT_EACH r.part[p] = (Octets)PARETOBIT_X(avg_epu8)((Wide)a.part[p], (Wide)b.part[p]);
  return r;
}

PARETOBIT_INLINE Ints widen_bytes(const uint8_t* from) {
  Ints r;
#if PARETOBIT_WIDTH == 16
  r.part[0] = (Integers)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from));
#else
  PARETOBIT_EACH r.part[p] = (Integers)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)(from + 8 * p)));
#endif
  return r;
}

PARETOBIT_INLINE Ints widen_shorts(const uint16_t* from) {
  Ints r;
#if PARETOBIT_WIDTH == 16
  r.part[0] = (Integers)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from));
#else
  PARETOBIT_EACH r.part[p] = (Integers)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)(from + 8 * p)));
#endif
  return r;
}

// Lane i holds number i >> kBits of the 16 >> kBits from here; what follows them is read too.
template <int kBits>
PARETOBIT_INLINE Lanes repeat(const float* from) {
  Lanes r;
#if PARETOBIT_WIDTH == 16
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  r.part[0] = (Register)_mm512_permutexvar_ps(_mm512_srli_epi32(lane, kBits), _mm512_loadu_ps(from));
#else
  const __m256i lane = _mm256_srli_epi32(_mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0), kBits);
  PARETOBIT_EACH r.part[p] = (Register)_mm256_permutevar8x32_ps(_mm256_loadu_ps(from + (8 * p >> kBits)), lane);
#endif
  return r;
}
#undef PARETOBIT_X
#undef PARETOBIT_XOR
