// The trellis: a weight's level is the sum of two entries of tables of sixteen, one for each nibble of its window.
// docs/FORMAT.md has the layout. One register at a time: four sets of sums and all that decoding needs fit into sixteen.
//
// An ISA may bring what follows up to #endif itself (PARETOBIT_NIBBLES). What `down`, `halves`, `ends` and `middle` leave
// in bits that are not named here is anybody's.

struct NoTable {};

#if !PARETOBIT_NIBBLES
struct Table {
  Octets low, high;  // each 16 bytes of a register have all sixteen entries
};

PARETOBIT_INLINE Octets sixteen_repeated(const uint8_t* from) {
  uint8_t bytes[sizeof(Octets)];
  for (size_t at = 0; at < sizeof bytes; at += 16) std::memcpy(bytes + at, from, 16);
  Octets r;
  std::memcpy(&r, bytes, sizeof r);
  return r;
}

PARETOBIT_INLINE Table make_table(const uint8_t* from) { return {sixteen_repeated(from), sixteen_repeated(from + 16)}; }

// Every byte's bits from kShift on.
template <int kShift>
PARETOBIT_INLINE Octets down(Octets v) {
  return (Octets)((Shorts)v >> kShift);
}

// Entries of the low table, and of the high one, for bits kShift … kShift + 3 of every byte.
template <int kShift>
PARETOBIT_INLINE Octets low(const Table& table, Octets v) {
  return pick(table.low, bits<kShift, 15>(v));
}
template <int kShift>
PARETOBIT_INLINE Octets high(const Table& table, Octets v) {
  return pick(table.high, bits<kShift, 15>(v));
}

// Of every byte the low halves, or the high ones: that of v below that of p.
template <bool kHigh>
PARETOBIT_INLINE Octets halves(Octets p, Octets v) {
  if constexpr (kHigh) return bits<0, 0xF0>(p) | bits<4, 15>(v);
  return bits<-4, 0xF0>(p) | bits<0, 15>(v);
}

// Bits p1 p0 v7 v6 of every byte.
PARETOBIT_INLINE Octets ends(Octets p, Octets v) {
  return bits<-2, 12>(p) | bits<6, 3>(v);
}

// Bits p1 p0 y5 y4 y3 y2 v7 v6 of every byte.
PARETOBIT_INLINE Octets middle(Octets p, Octets y, Octets v) {
  return bits<-6, 0xC0>(p) | bits<0, 0x3C>(y) | bits<6, 3>(v);
}
#endif

template <Format kFormat>
PARETOBIT_INLINE auto load_table(const Matrix& m) {
  if constexpr (is_trellis(kFormat))
    return make_table(m.table);
  else
    return NoTable{};
}

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

struct Levels {
  Octets set[4];
};

// A quad's fields of six bits, in part p: three quads have vectors of their own from kFirst on, and the fourth has what
// they leave of each byte; so what lies above six bits is anybody's.
template <int kFirst, int kQuad>
PARETOBIT_INLINE Octets six_of(const uint8_t* unit, int p) {
  if constexpr (kQuad < 3) return part_of(unit, kFirst + kQuad, p);
  return bits<6, 3>(part_of(unit, kFirst, p)) | bits<4, 12>(part_of(unit, kFirst + 1, p)) |
         bits<2, 48>(part_of(unit, kFirst + 2, p));
}

// Of one quad of a unit, in part p of the lanes. Where a nibble has a place of its own it is looked up from there; the
// shifts are chosen so that several share one.
template <Format kFormat, int kQuad>
PARETOBIT_INLINE Levels levels(const uint8_t* unit, int p, const Table& t) {
  if constexpr (kFormat == Format::kT1) {  // four bits a lane: two lanes' hold the nibbles of four windows
    constexpr bool kHigh = kQuad % 2 == 1;
    const Octets v = part_of(unit, kQuad / 2, p), before = moved_part<1>(unit, kQuad / 2, p);
    const Octets own = halves<kHigh>(before, v);
    const Octets past = kParts == 1 ? previous<1>(own, own) : halves<kHigh>(moved_part<2>(unit, kQuad / 2, p), before);
    const Octets own1 = down<1>(own), past1 = down<1>(past);
    return {{low<2>(t, own1) + high<2>(t, past1), low<2>(t, own) + high<2>(t, past),
             low<0>(t, own1) + high<0>(t, past1), low<0>(t, own) + high<0>(t, past)}};
  } else if constexpr (kFormat == Format::kT2) {
    const Octets v = part_of(unit, kQuad, p), before = moved_part<1>(unit, kQuad, p), first = ends(before, v);
    return {{low<0>(t, first) + high<2>(t, before), low<4>(t, v) + high<0>(t, before),
             low<2>(t, v) + high<0>(t, first), low<0>(t, v) + high<4>(t, v)}};
  } else if constexpr (kFormat == Format::kT3) {
    constexpr int kFirst = kQuad / 2 * 3;
    const Octets v = part_of(unit, kFirst + kQuad % 2, p), before = moved_part<1>(unit, kFirst + kQuad % 2, p);
    const Shorts rest = (Shorts)part_of(unit, kFirst + 2, p);
    const Octets mid = middle(before, (Octets)(kQuad % 2 ? rest >> 2 : rest << 2), v);
    const Octets mid3 = down<3>(mid), v3 = down<3>(v);
    return {{low<0>(t, mid3) + high<1>(t, before), low<0>(t, mid) + high<1>(t, mid3),
             low<0>(t, v3) + high<1>(t, mid), low<0>(t, v) + high<1>(t, v3)}};
  } else if constexpr (kFormat == Format::kT1Half) {  // p3 … p0 v5 v4 and p1 p0 v5 … v0 of number v, and p a lane before
    const Octets v = six_of<0, kQuad>(unit, p), before = previous<1>(six_of<0, kQuad>(unit, (p + kParts - 1) % kParts), v);
    const Octets own = bits<0, 63>(v) | bits<-6, 0xC0>(before), past = bits<4, 3>(v) | bits<-2, 0xFC>(before);
    return {{low<0>(t, past) + high<4>(t, past), low<3>(t, own) + high<3>(t, past), low<1>(t, own) + high<1>(t, past),
             low<0>(t, own) + high<4>(t, own)}};
  } else if constexpr (kFormat == Format::kT2Half) {  // p2 p1 p0 v9 … v5
    const Octets v = part_of(unit, kQuad, p), before = moved_part<1>(unit, kQuad, p);
    const Octets mid = bits<5, 7>(v) | bits<2 * kQuad - 3, 0x18>(part_of(unit, 4, p)) | bits<-5, 0xE0>(before);
    return {{low<2>(t, mid) + high<1>(t, before), low<0>(t, mid) + high<4>(t, mid), low<2>(t, v) + high<1>(t, mid),
             low<0>(t, v) + high<4>(t, v)}};
  } else if constexpr (kFormat == Format::kT3Half) {  // p0 v13 … v7
    const Octets v = part_of(unit, kQuad, p), before = moved_part<1>(unit, kQuad, p);
    const Octets mid = bits<7, 1>(v) | bits<-1, 0x7E>(six_of<4, kQuad>(unit, p)) | bits<-7, 0x80>(before);
    return {{low<3>(t, mid) + high<0>(t, before), low<0>(t, mid) + high<4>(t, mid), low<3>(t, v) + high<0>(t, mid),
             low<0>(t, v) + high<4>(t, v)}};
  } else {
    const Octets v = part_of(unit, 2 * kQuad, p), w = part_of(unit, 2 * kQuad + 1, p);
    const Octets before = moved_part<1>(unit, 2 * kQuad + 1, p);
    return {{low<4>(t, v) + high<0>(t, before), low<0>(t, v) + high<4>(t, v), low<4>(t, w) + high<0>(t, v),
             low<0>(t, w) + high<4>(t, w)}};
  }
}

// `use(kQuad, levels)` for every quad of a unit, in order, unrolled: those of four sets in part p of the lanes.
template <Format kFormat, int kQuad, class Use>
PARETOBIT_INLINE void each_ring_quad(const uint8_t* unit, int p, const Table& table, Use&& use) {
  use(kQuad, levels<kFormat, kQuad>(unit, p, table));
  if constexpr (kQuad < 3) each_ring_quad<kFormat, kQuad + 1>(unit, p, table, use);
}
