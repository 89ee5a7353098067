// The trellis: a weight's level is read from two tables of sixteen, by the two nibbles of its window. docs/FORMAT.md has
// the layout. One register at a time: four sets of sums and all that decoding needs would not fit otherwise.
//
// An ISA may bring the functions on nibbles itself (PARETOBIT_NIBBLES): of their results only the low four bits
// count, and its `pick` must not look at the others.

struct Table {
  Octets low, high;  // each 16 bytes of a register has all sixteen entries
};

struct NoTable {};

PARETOBIT_INLINE Octets sixteen_repeated(const uint8_t* from) {
  uint8_t bytes[sizeof(Octets)];
  for (size_t at = 0; at < sizeof bytes; at += 16) std::memcpy(bytes + at, from, 16);
  Octets r;
  std::memcpy(&r, bytes, sizeof r);
  return r;
}

template <Format kFormat>
PARETOBIT_INLINE auto load_table(const Matrix& m) {
  if constexpr (is_trellis(kFormat))
    return Table{sixteen_repeated(m.table), sixteen_repeated(m.table + 16)};
  else
    return NoTable{};
}

#if !PARETOBIT_NIBBLES
PARETOBIT_INLINE Octets all_octets(int x) { return uint8_t(x) - Octets{}; }

// Bits kShift … kShift + 3 of every byte.
template <int kShift>
PARETOBIT_INLINE Octets nibble(Octets v) {
  if constexpr (kShift == 4) return v >> 4;
  return (Octets)((Shorts)v >> kShift) & all_octets(15);
}

// The low half of v below the low half of p; the high halves likewise.
PARETOBIT_INLINE Octets low_high(Octets v, Octets p) { return (v & all_octets(15)) | p << 4; }
PARETOBIT_INLINE Octets high_high(Octets v, Octets p) { return v >> 4 | (p & all_octets(0xF0)); }

// Bits p1 p0 v7 v6 of every byte.
PARETOBIT_INLINE Octets ends(Octets p, Octets v) {
  return ((Octets)((Shorts)p << 2) & all_octets(12)) | v >> 6;
}

// Bits p1 p0 y5 y4 y3 y2 x7 x6 of every byte.
PARETOBIT_INLINE Octets middle(Octets p, Octets y, Octets x) {
  return p << 6 | (y & all_octets(0x3C)) | x >> 6;
}
#endif

// Part p of vector `index` of a unit, and the same with every lane's bytes moved kLanes lanes up, around the ring.
PARETOBIT_INLINE Octets part_of(const uint8_t* unit, int index, int p) {
  Octets r;
  std::memcpy(&r, unit + size_t(index) * kVector + size_t(p) * sizeof r, sizeof r);
  return r;
}

template <int kLanes>
PARETOBIT_INLINE Octets moved_part(const uint8_t* unit, int index, int p) {
  return previous<kLanes>(part_of(unit, index, (p + kParts - 1) % kParts), part_of(unit, index, p));
}

// The nibbles of the windows of one quad and one part of the lanes: low[j] and high[j] of set j.
struct Windows {
  Octets low[4], high[4];
};

template <Format kFormat, int kQuad>
PARETOBIT_INLINE Windows windows(const uint8_t* unit, int p) {
  if constexpr (kFormat == Format::kT1) {
    // Four bits a lane, two quads a vector: bytes of two lanes' hold four windows' nibbles.
    const Octets v = part_of(unit, kQuad / 2, p);
    const Octets before = moved_part<1>(unit, kQuad / 2, p), third = moved_part<2>(unit, kQuad / 2, p);
    Octets own, past;
    if constexpr (kQuad % 2 == 0)
      own = low_high(v, before), past = low_high(before, third);
    else
      own = high_high(v, before), past = high_high(before, third);
    return {{nibble<3>(own), nibble<2>(own), nibble<1>(own), nibble<0>(own)},
            {nibble<3>(past), nibble<2>(past), nibble<1>(past), nibble<0>(past)}};
  } else if constexpr (kFormat == Format::kT2) {
    const Octets v = part_of(unit, kQuad, p), before = moved_part<1>(unit, kQuad, p);
    const Octets first = ends(before, v), second = nibble<4>(v);
    return {{first, second, nibble<2>(v), nibble<0>(v)}, {nibble<2>(before), nibble<0>(before), first, second}};
  } else if constexpr (kFormat == Format::kT3) {
    constexpr int kFirst = kQuad / 2 * 3;
    const Octets x = part_of(unit, kFirst + kQuad % 2, p), before = moved_part<1>(unit, kFirst + kQuad % 2, p);
    const Shorts rest = (Shorts)part_of(unit, kFirst + 2, p);
    const Octets y = (Octets)(kQuad % 2 == 0 ? rest << 2 : rest >> 2);
    const Octets mid = middle(before, y, x);
    return {{nibble<3>(mid), nibble<0>(mid), nibble<3>(x), nibble<0>(x)},
            {nibble<1>(before), nibble<4>(mid), nibble<1>(mid), nibble<4>(x)}};
  } else {
    const Octets v = part_of(unit, 2 * kQuad, p), w = part_of(unit, 2 * kQuad + 1, p);
    const Octets before = moved_part<1>(unit, 2 * kQuad + 1, p);
    const Octets a = nibble<4>(v), b = nibble<0>(v), c = nibble<4>(w);
    return {{a, b, c, nibble<0>(w)}, {nibble<0>(before), a, b, c}};
  }
}

struct Levels {
  Octets set[4];
};

template <Format kFormat, int kQuad>
PARETOBIT_INLINE Levels levels(const uint8_t* unit, int p, const Table& table) {
  const Windows w = windows<kFormat, kQuad>(unit, p);
  Levels r;
  for (int j = 0; j < 4; ++j) r.set[j] = pick(table.low, w.low[j]) + pick(table.high, w.high[j]);
  return r;
}

// `use(kQuad, levels)` for every quad of a unit, in order, unrolled: those of four sets in part p of the lanes.
template <Format kFormat, int kQuad, class Use>
PARETOBIT_INLINE void each_ring_quad(const uint8_t* unit, int p, const Table& table, Use&& use) {
  use(kQuad, levels<kFormat, kQuad>(unit, p, table));
  if constexpr (kQuad < 3) each_ring_quad<kFormat, kQuad + 1>(unit, p, table, use);
}
