// AVX-512 with VNNI: one instruction multiplies 64 codes with 64 activations and adds in fours, without saturation.

struct SumPart {
  __m512i lane;
};

struct Quad {
  __m512i repeated;
};

PARETOBIT_INLINE Quad load_quad(const int8_t* from) {
  int32_t four;
  std::memcpy(&four, from, 4);
  return Quad{_mm512_set1_epi32(four)};
}

PARETOBIT_INLINE SumPart no_sum_part() { return SumPart{_mm512_setzero_si512()}; }

template <int kTop>
PARETOBIT_INLINE void add_dot(SumPart& sum, Octets codes, const Quad& quad) {
  sum.lane = _mm512_dpbusd_epi32(sum.lane, (__m512i)codes, quad.repeated);
}

template <int kTop>
PARETOBIT_INLINE void spill(SumPart&, int) {}

template <int kTop>
PARETOBIT_INLINE Integers total(const SumPart& sum, int32_t) {
  return (Integers)sum.lane;
}

#if !PARETOBIT_NIBBLES
PARETOBIT_INLINE Octets pick(Octets table, Octets index) {
  return (Octets)_mm512_shuffle_epi8((__m512i)table, (__m512i)index);
}
#endif

template <int kLanes>
PARETOBIT_INLINE Octets previous(Octets before, Octets v) {
  return (Octets)_mm512_alignr_epi32((__m512i)v, (__m512i)before, 16 - kLanes);
}

PARETOBIT_INLINE Lanes from_half(const uint16_t* from) {
  return Lanes{{(Register)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)from))}};
}

PARETOBIT_INLINE Bytes average(const Bytes& a, const Bytes& b) {
  return Bytes{{(Octets)_mm512_avg_epu8((__m512i)a.part[0], (__m512i)b.part[0])}};
}

PARETOBIT_INLINE Ints widen_bytes(const uint8_t* from) {
  return Ints{{(Integers)_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)from))}};
}
PARETOBIT_INLINE Ints widen_shorts(const uint16_t* from) {
  return Ints{{(Integers)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)from))}};
}

// Lane i holds number i >> kBits of the 16 >> kBits from here; what follows them is read too.
template <int kBits>
PARETOBIT_INLINE Lanes repeat(const float* from) {
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return Lanes{{(Register)_mm512_permutexvar_ps(_mm512_srli_epi32(lane, kBits), _mm512_loadu_ps(from))}};
}
