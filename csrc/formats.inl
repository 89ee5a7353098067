// How each format's unit unpacks: planes(set) gives the codes (of a trellis: the levels) of quad kQuad of every row set,
// quads in order. The layout is docs/FORMAT.md's. To add a grid, add its format and facts to matrix.h, a struct here (of a
// trellis: a branch of `levels` in trellis.inl) and how it is packed to pack.cpp.

// A trellis; of all others below.
template <Format kFormat>
struct Unit {
  static_assert(is_trellis(kFormat));
  static constexpr int kQuads = 4, kTop = 127;
  const uint8_t* from;
  const Table& table;
  PARETOBIT_MEMBER Unit(const uint8_t* at, const Table& entries) : from(at), table(entries) {}
  template <int kQuad>
  PARETOBIT_MEMBER void planes(Bytes* set) const {
    PARETOBIT_EACH {
      const Levels level = levels<kFormat, kQuad>(from, p, table);
      for (int j = 0; j < 4; ++j) set[j].part[p] = level.set[j];
    }
  }
};

template <>
struct Unit<Format::k1> {
  static constexpr int kQuads = 4, kTop = 1;
  Bytes v;
  PARETOBIT_MEMBER explicit Unit(const uint8_t* from) : v(load_bytes(from)) {}
  template <int kQuad>
  PARETOBIT_MEMBER void planes(Bytes* set) {
    set[0] = field<kQuad, 1>(v);
    set[1] = field<4 + kQuad, 1>(v);
  }
};

template <>
struct Unit<Format::k2> {
  static constexpr int kQuads = 4, kTop = 3;
  Bytes v, w;
  PARETOBIT_MEMBER explicit Unit(const uint8_t* from) : v(load_bytes(from)), w(load_bytes(from + 64)) {}
  template <int kQuad>
  PARETOBIT_MEMBER void planes(Bytes* set) {
    set[0] = field<2 * kQuad, 3>(v);
    set[1] = field<2 * kQuad, 3>(w);
  }
};

template <>
struct Unit<Format::kTrits> {
  static constexpr int kQuads = 5, kTop = 3;  // bytes that no packer writes decode to 3 at most
  Trits v, w;
  PARETOBIT_MEMBER explicit Unit(const uint8_t* from) : v(from), w(from + 64) {}
  template <int kQuad>
  PARETOBIT_MEMBER void planes(Bytes* set) {
    set[0] = v.template digit<kQuad>();
    set[1] = w.template digit<kQuad>();
  }
};

template <>
struct Unit<Format::k3> {
  static constexpr int kQuads = 4, kTop = 7;
  Bytes v[3];
  PARETOBIT_MEMBER explicit Unit(const uint8_t* from)
      : v{load_bytes(from), load_bytes(from + 64), load_bytes(from + 128)} {}
  template <int kPlane>
  PARETOBIT_MEMBER Bytes plane() const {
    if constexpr (kPlane == 6) return field<6, 3>(v[0]) | field<4, 4>(v[2]);
    if constexpr (kPlane == 7) return field<6, 3>(v[1]) | field<5, 4>(v[2]);
    if constexpr (kPlane < 6) return field<3 * (kPlane % 2), 7>(v[kPlane / 2]);
  }
  template <int kQuad>
  PARETOBIT_MEMBER void planes(Bytes* set) {
    set[0] = plane<kQuad>();
    set[1] = plane<4 + kQuad>();
  }
};

// Low nibbles of 4, 5 and 6 bits: plane p in the low or high half of vector p / 2.
struct Nibbles {
  Bytes v[4];
  PARETOBIT_MEMBER explicit Nibbles(const uint8_t* from)
      : v{load_bytes(from), load_bytes(from + 64), load_bytes(from + 128), load_bytes(from + 192)} {}
  template <int kQuad>
  PARETOBIT_MEMBER void planes(Bytes* set) const {
    set[0] = field<4 * (kQuad % 2), 15>(v[kQuad / 2]);
    set[1] = field<4 * (kQuad % 2), 15>(v[2 + kQuad / 2]);
  }
};

template <>
struct Unit<Format::k4> : Nibbles {
  static constexpr int kQuads = 4, kTop = 15;
  PARETOBIT_MEMBER explicit Unit(const uint8_t* from) : Nibbles(from) {}
};

template <>
struct Unit<Format::k5> {
  static constexpr int kQuads = 4, kTop = 31;
  Nibbles low;
  Bytes high;
  PARETOBIT_MEMBER explicit Unit(const uint8_t* from) : low(from), high(load_bytes(from + 256)) {}
  template <int kQuad>
  PARETOBIT_MEMBER void planes(Bytes* set) const {
    low.planes<kQuad>(set);
    set[0] = set[0] | field<kQuad - 4, 16>(high);
    set[1] = set[1] | field<kQuad, 16>(high);
  }
};

template <>
struct Unit<Format::k6> {
  static constexpr int kQuads = 4, kTop = 63;
  Nibbles low;
  Bytes high[2];
  PARETOBIT_MEMBER explicit Unit(const uint8_t* from)
      : low(from), high{load_bytes(from + 256), load_bytes(from + 320)} {}
  template <int kQuad>
  PARETOBIT_MEMBER void planes(Bytes* set) const {
    low.planes<kQuad>(set);
    set[0] = set[0] | field<2 * kQuad - 4, 48>(high[0]);
    set[1] = set[1] | field<2 * kQuad - 4, 48>(high[1]);
  }
};

template <>
struct Unit<Format::k8> {
  static constexpr int kQuads = 4, kTop = 255;
  const uint8_t* from;
  PARETOBIT_MEMBER explicit Unit(const uint8_t* at) : from(at) {}
  template <int kQuad>
  PARETOBIT_MEMBER void planes(Bytes* set) const {
    set[0] = load_bytes(from + 64 * kQuad);
    set[1] = load_bytes(from + 64 * (4 + kQuad));
  }
};

template <Format kFormat, class TableOf>
PARETOBIT_INLINE Unit<kFormat> make_unit(const uint8_t* from, const TableOf& table) {
  if constexpr (is_trellis(kFormat))
    return Unit<kFormat>(from, table);
  else
    return Unit<kFormat>(from);
}

// `use(kQuad, sets)` for every quad of a unit, in order, unrolled; sets: the codes of each.
template <int kQuad, int kSets, class U, class Use>
PARETOBIT_INLINE void each_quad(U& unit, Use&& use) {
  Bytes sets[kSets];
  unit.template planes<kQuad>(sets);
  use(kQuad, sets);
  if constexpr (kQuad + 1 < U::kQuads) each_quad<kQuad + 1, kSets>(unit, use);
}
