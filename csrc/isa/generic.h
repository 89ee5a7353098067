// The operations that differ between instruction sets, in plain C++: what the others must equal bit for bit.
// Included by dispatch.cpp inside an ISA's namespace and target region, after lanes.inl. An ISA header gives
//   SumPart, no_sum_part()           a register's running int32 sums, as the hardware likes to keep them
//   alike(top)                       one kTop for all that are computed alike
//   Quad, load_quad(p)               four activations, as the hardware likes to repeat them
//   add_dot<kTop>(sum, codes, quad)  sum[i] += Σ_k codes[4i + k] · quad[k]; codes ≤ kTop, |quad| ≤ 127
//   spill<kTop>(sum, quads)          called after `quads` quads of every unit: makes room where sums are narrow
//   total<kTop>(sum, correction)     the sums; correction is Σ of all activations that went in
//   from_half(p)                     16 halves to float
//   widen_bytes(p)                   16 bytes to int32
//   widen_shorts(p)                  16 unsigned 16-bit numbers to int32
//   average(a, b)                    of bytes, rounded up
//   pick(table, index)               for every byte of a register: entry `index` < 16 of the table in its 16 bytes
//   previous<k>(before, v)           a register's dwords moved k places up; the first k are the last of `before`
//   repeat<kBits>(p)                 each of 16 >> kBits floats so many times

constexpr int alike(int) { return 255; }

struct SumPart {
  int32_t lane[PARETOBIT_WIDTH];
};

struct Quad {
  int8_t value[4];
};

PARETOBIT_INLINE Quad load_quad(const int8_t* from) {
  Quad r;
  std::memcpy(&r, from, 4);
  return r;
}

PARETOBIT_INLINE SumPart no_sum_part() { return SumPart{}; }

template <int kTop>
PARETOBIT_INLINE void add_dot(SumPart& sum, Octets codes, const Quad& quad) {
  uint8_t code[sizeof codes];
  std::memcpy(code, &codes, sizeof codes);
  for (int i = 0; i < PARETOBIT_WIDTH; ++i)
    for (int k = 0; k < 4; ++k) sum.lane[i] += int32_t(code[4 * i + k]) * quad.value[k];
}

template <int kTop>
PARETOBIT_INLINE void spill(SumPart&, int) {}

template <int kTop>
PARETOBIT_INLINE Integers total(const SumPart& sum, int32_t) {
  Integers r;
  std::memcpy(&r, &sum, sizeof r);
  return r;
}

PARETOBIT_INLINE Octets pick(Octets table, Octets index) {
  uint8_t entry[sizeof table], at[sizeof table], found[sizeof table];
  std::memcpy(entry, &table, sizeof table);
  std::memcpy(at, &index, sizeof table);
  for (size_t i = 0; i < sizeof table; ++i) found[i] = entry[at[i] % 16];
  Octets r;
  std::memcpy(&r, found, sizeof r);
  return r;
}

template <int kLanes>
PARETOBIT_INLINE Octets previous(Octets before, Octets v) {
  uint8_t both[2 * sizeof v];
  std::memcpy(both, &before, sizeof v);
  std::memcpy(both + sizeof v, &v, sizeof v);
  Octets r;
  std::memcpy(&r, both + sizeof v - 4 * kLanes, sizeof r);
  return r;
}

PARETOBIT_INLINE Lanes from_half(const uint16_t* from) {
  float value[16];
  for (int i = 0; i < 16; ++i) value[i] = half_to_float(from[i]);
  return load(value);
}

PARETOBIT_INLINE Bytes average(const Bytes& a, const Bytes& b) {
  Bytes r;
  PARETOBIT_EACH {
    const Shorts differ = (Shorts)(a.part[p] ^ b.part[p]);
    r.part[p] = (a.part[p] | b.part[p]) - (Octets)(differ >> 1 & (Shorts)(uint16_t(0x7F7F) - Shorts{}));
  }
  return r;
}

template <class T>
PARETOBIT_INLINE Ints widened(const T* from) {
  int32_t value[16];
  for (int i = 0; i < 16; ++i) value[i] = from[i];
  Ints r;
  std::memcpy(&r, value, sizeof r);
  return r;
}
PARETOBIT_INLINE Ints widen_bytes(const uint8_t* from) { return widened(from); }
PARETOBIT_INLINE Ints widen_shorts(const uint16_t* from) { return widened(from); }

// Lane i holds number i >> kBits of the 16 >> kBits from here.
template <int kBits>
PARETOBIT_INLINE Lanes repeat(const float* from) {
  float value[16];
  for (int i = 0; i < 16; ++i) value[i] = from[i >> kBits];
  return load(value);
}
