// NEON. PARETOBIT_DOT: 0 plain, 1 with the signed dot product, 2 with the mixed one (i8mm), which takes codes as they
// are; the others read them as signed, so codes of 8 bits move down by 128 and the sums are corrected.

struct Quad {
  int8x16_t repeated;
};

PARETOBIT_INLINE Quad load_quad(const int8_t* from) {
  int32_t four;
  std::memcpy(&four, from, 4);
  return Quad{vreinterpretq_s8_s32(vdupq_n_s32(four))};
}

constexpr int alike(int top) { return PARETOBIT_DOT == 2 || top > 127 ? 255 : 127; }

#if PARETOBIT_DOT == 0
constexpr int kSums = 2;  // a register for every two rows: their columns in pairs
#else
constexpr int kSums = 1;
#endif

struct SumPart {
  int32x4_t lane[kSums];
};

PARETOBIT_INLINE SumPart no_sum_part() {
  SumPart r;
  for (int32x4_t& lane : r.lane) lane = vdupq_n_s32(0);
  return r;
}

template <int kTop>
PARETOBIT_INLINE void add_dot(SumPart& sum, Octets codes, const Quad& quad) {
  const uint8x16_t c = (uint8x16_t)codes;
#if PARETOBIT_DOT == 2
  sum.lane[0] = vusdotq_s32(sum.lane[0], c, quad.repeated);
#else
  const int8x16_t s = vreinterpretq_s8_u8(kTop > 127 ? veorq_u8(c, vdupq_n_u8(128)) : c);
#if PARETOBIT_DOT == 1
  sum.lane[0] = vdotq_s32(sum.lane[0], s, quad.repeated);
#else
  const int8x8_t four = vget_low_s8(quad.repeated);
  sum.lane[0] = vpadalq_s16(sum.lane[0], vmull_s8(vget_low_s8(s), four));
  sum.lane[1] = vpadalq_s16(sum.lane[1], vmull_s8(vget_high_s8(s), four));
#endif
#endif
}

template <int kTop>
PARETOBIT_INLINE void spill(SumPart&, int) {}

template <int kTop>
PARETOBIT_INLINE Integers total(const SumPart& sum, int32_t correction) {
#if PARETOBIT_DOT == 0
  Integers r = (Integers)vpaddq_s32(sum.lane[0], sum.lane[1]);
#else
  Integers r = (Integers)sum.lane[0];
#endif
  if (PARETOBIT_DOT < 2 && kTop > 127) r += 128 * correction - Integers{};
  return r;
}

PARETOBIT_INLINE Octets pick(Octets table, Octets index) {
  return (Octets)vqtbl1q_u8((uint8x16_t)table, (uint8x16_t)index);
}

template <int kLanes>
PARETOBIT_INLINE Octets previous(Octets before, Octets v) {
  return (Octets)vextq_u8((uint8x16_t)before, (uint8x16_t)v, 16 - 4 * kLanes);
}

PARETOBIT_INLINE Lanes from_half(const uint16_t* from) {
  Lanes r;
  PARETOBIT_EACH r.part[p] = (Register)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from + 4 * p)));
  return r;
}

PARETOBIT_INLINE Bytes average(const Bytes& a, const Bytes& b) {
  Bytes r;
  PARETOBIT_EACH r.part[p] = (Octets)vrhaddq_u8((uint8x16_t)a.part[p], (uint8x16_t)b.part[p]);
  return r;
}

PARETOBIT_INLINE Ints widen_shorts(const uint16_t* from) {
  Ints r;
  PARETOBIT_EACH r.part[p] = (Integers)vmovl_u16(vld1_u16(from + 4 * p));
  return r;
}
PARETOBIT_INLINE Ints widen_bytes(const uint8_t* from) {
  const uint8x16_t bytes = vld1q_u8(from);
  uint16_t shorts[16];
  vst1q_u16(shorts, vmovl_u8(vget_low_u8(bytes)));
  vst1q_u16(shorts + 8, vmovl_u8(vget_high_u8(bytes)));
  return widen_shorts(shorts);
}

// Lane i holds number i >> kBits of the 16 >> kBits from here.
template <int kBits>
PARETOBIT_INLINE Lanes repeat(const float* from) {
  Lanes r;
  PARETOBIT_EACH {
    const float* at = from + (4 * p >> kBits);
    if constexpr (kBits == 1)
      r.part[p] = Register{at[0], at[0], at[1], at[1]};
    else
      r.part[p] = at[0] - Register{};
  }
  return r;
}
