// What all of x86 shares: names of the intrinsics by width, and the operations that do not hang on how products are added.
// PARETOBIT_WIDTH 8: AVX2; 16: AVX-512 BW.

#if PARETOBIT_WIDTH == 16
#define PARETOBIT_X(name) _mm512_##name
#define PARETOBIT_BITS(name) _mm512_##name##_si512
typedef __m512i Wide;
PARETOBIT_INLINE Wide all_64(uint64_t x) { return _mm512_set1_epi64(int64_t(x)); }
#else
#define PARETOBIT_X(name) _mm256_##name
#define PARETOBIT_BITS(name) _mm256_##name##_si256
typedef __m256i Wide;
PARETOBIT_INLINE Wide all_64(uint64_t x) { return _mm256_set1_epi64x(int64_t(x)); }
#endif
PARETOBIT_INLINE Wide no_bits() { return PARETOBIT_BITS(setzero)(); }

struct Quad {
  Wide repeated;
};

PARETOBIT_INLINE Quad load_quad(const int8_t* from) {
  int32_t four;
  std::memcpy(&four, from, 4);
  return Quad{PARETOBIT_X(set1_epi32)(four)};
}

#if !PARETOBIT_NIBBLES
PARETOBIT_INLINE Octets pick(Octets table, Octets index) {
  return (Octets)PARETOBIT_X(shuffle_epi8)((Wide)table, (Wide)index);
}
#endif

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
