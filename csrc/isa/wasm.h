// WebAssembly's 128-bit vectors: products of bytes in 16 bits, added in pairs into 32. Codes of 8 bits are read as signed
// and the sums corrected.

struct Quad {
  v128_t repeated;
};

PARETOBIT_INLINE Quad load_quad(const int8_t* from) { return Quad{wasm_v128_load32_splat(from)}; }

constexpr int alike(int top) { return top > 127 ? 255 : 127; }

struct SumPart {
  v128_t lane[2];  // a register for every two rows: their columns in pairs
};

PARETOBIT_INLINE SumPart no_sum_part() { return {{wasm_i32x4_const_splat(0), wasm_i32x4_const_splat(0)}}; }

PARETOBIT_INLINE v128_t add_pairs(v128_t sum, v128_t products) {
  return wasm_i32x4_add(sum, wasm_i32x4_extadd_pairwise_i16x8(products));
}

template <int kTop>
PARETOBIT_INLINE void add_dot(SumPart& sum, Octets codes, const Quad& quad) {
  v128_t c = (v128_t)codes;
  if (kTop > 127) c = wasm_v128_xor(c, wasm_i8x16_const_splat(int8_t(-128)));
  sum.lane[0] = add_pairs(sum.lane[0], wasm_i16x8_extmul_low_i8x16(c, quad.repeated));
  sum.lane[1] = add_pairs(sum.lane[1], wasm_i16x8_extmul_high_i8x16(c, quad.repeated));
}

template <int kTop>
PARETOBIT_INLINE void spill(SumPart&, int) {}

template <int kTop>
PARETOBIT_INLINE Integers total(const SumPart& sum, int32_t correction) {
  const v128_t a = sum.lane[0], b = sum.lane[1];
  const v128_t lane = wasm_i32x4_add(wasm_i32x4_shuffle(a, b, 0, 2, 4, 6), wasm_i32x4_shuffle(a, b, 1, 3, 5, 7));
  Integers r = (Integers)lane;
  if (kTop > 127) r += 128 * correction - Integers{};
  return r;
}

PARETOBIT_INLINE Octets pick(Octets table, Octets index) {
  return (Octets)wasm_i8x16_swizzle((v128_t)table, (v128_t)index);
}

template <int kLanes>
PARETOBIT_INLINE Octets previous(Octets before, Octets v) {
  if constexpr (kLanes == 1) return (Octets)wasm_i32x4_shuffle((v128_t)before, (v128_t)v, 3, 4, 5, 6);
  return (Octets)wasm_i32x4_shuffle((v128_t)before, (v128_t)v, 2, 3, 4, 5);
}

PARETOBIT_INLINE Lanes from_half(const uint16_t* from) {
  Lanes r;
  PARETOBIT_EACH {
    // Shifted into a float's place, halves are 2^112 too small, subnormal ones too; what became 2^16 was infinite.
    const v128_t half = wasm_u32x4_load16x4(from + 4 * p);
    const v128_t sign = wasm_i32x4_shl(wasm_v128_and(half, wasm_i32x4_const_splat(0x8000)), 16);
    const v128_t size = wasm_i32x4_shl(wasm_v128_and(half, wasm_i32x4_const_splat(0x7FFF)), 13);
    const v128_t value = wasm_f32x4_mul(size, wasm_f32x4_const_splat(0x1p112f));
    const v128_t huge = wasm_f32x4_ge(value, wasm_f32x4_const_splat(65536.0f));
    const v128_t special = wasm_v128_or(size, wasm_i32x4_const_splat(0x7F800000));
    r.part[p] = (Register)wasm_v128_or(sign, wasm_v128_bitselect(special, value, huge));
  }
  return r;
}

PARETOBIT_INLINE Bytes average(const Bytes& a, const Bytes& b) {
  Bytes r;
  PARETOBIT_EACH r.part[p] = (Octets)wasm_u8x16_avgr((v128_t)a.part[p], (v128_t)b.part[p]);
  return r;
}

PARETOBIT_INLINE Ints widen_shorts(const uint16_t* from) {
  Ints r;
  PARETOBIT_EACH r.part[p] = (Integers)wasm_u32x4_load16x4(from + 4 * p);
  return r;
}
PARETOBIT_INLINE Ints widen_bytes(const uint8_t* from) {
  uint16_t shorts[16];
  wasm_v128_store(shorts, wasm_u16x8_load8x8(from));
  wasm_v128_store(shorts + 8, wasm_u16x8_load8x8(from + 8));
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
