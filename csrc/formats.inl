// How each format's unit unpacks: planes(a, b) gives the codes of quad kQuad of both row sets, quads in order. The
// layout is docs/FORMAT.md's. To add a bit-width, add one struct here, and its facts to matrix.h.

template <Format kFormat>
struct Unit;

template <>
struct Unit<Format::k1> {
  static constexpr int kQuads = 4, kTop = 1;
  Bytes v;
  PARETOBIT_MEMBER explicit Unit(const uint8_t* from) : v(load_bytes(from)) {}
  template <int kQuad>
  PARETOBIT_MEMBER void planes(Bytes& a, Bytes& b) {
    a = field<kQuad, 1>(v);
    b = field<4 + kQuad, 1>(v);
  }
};

template <>
struct Unit<Format::k2> {
  static constexpr int kQuads = 4, kTop = 3;
  Bytes v, w;
  PARETOBIT_MEMBER explicit Unit(const uint8_t* from) : v(load_bytes(from)), w(load_bytes(from + 64)) {}
  template <int kQuad>
  PARETOBIT_MEMBER void planes(Bytes& a, Bytes& b) {
    a = field<2 * kQuad, 3>(v);
    b = field<2 * kQuad, 3>(w);
  }
};

template <>
struct Unit<Format::kTrits> {
  static constexpr int kQuads = 5, kTop = 3;  // bytes that no packer writes decode to 3 at most
  Trits v, w;
  PARETOBIT_MEMBER explicit Unit(const uint8_t* from) : v(from), w(from + 64) {}
  template <int kQuad>
  PARETOBIT_MEMBER void planes(Bytes& a, Bytes& b) {
    a = v.template digit<kQuad>();
    b = w.template digit<kQuad>();
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
  PARETOBIT_MEMBER void planes(Bytes& a, Bytes& b) {
    a = plane<kQuad>();
    b = plane<4 + kQuad>();
  }
};

// Low nibbles of 4, 5 and 6 bits: plane p in the low or high half of vector p / 2.
struct Nibbles {
  Bytes v[4];
  PARETOBIT_MEMBER explicit Nibbles(const uint8_t* from)
      : v{load_bytes(from), load_bytes(from + 64), load_bytes(from + 128), load_bytes(from + 192)} {}
  template <int kQuad>
  PARETOBIT_MEMBER void planes(Bytes& a, Bytes& b) const {
    a = field<4 * (kQuad % 2), 15>(v[kQuad / 2]);
    b = field<4 * (kQuad % 2), 15>(v[2 + kQuad / 2]);
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
  PARETOBIT_MEMBER void planes(Bytes& a, Bytes& b) const {
    low.planes<kQuad>(a, b);
    a = a | field<kQuad - 4, 16>(high);
    b = b | field<kQuad, 16>(high);
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
  PARETOBIT_MEMBER void planes(Bytes& a, Bytes& b) const {
    low.planes<kQuad>(a, b);
    a = a | field<2 * kQuad - 4, 48>(high[0]);
    b = b | field<2 * kQuad - 4, 48>(high[1]);
  }
};

template <>
struct Unit<Format::k8> {
  static constexpr int kQuads = 4, kTop = 255;
  const uint8_t* from;
  PARETOBIT_MEMBER explicit Unit(const uint8_t* at) : from(at) {}
  template <int kQuad>
  PARETOBIT_MEMBER void planes(Bytes& a, Bytes& b) const {
    a = load_bytes(from + 64 * kQuad);
    b = load_bytes(from + 64 * (4 + kQuad));
  }
};

// `use(kQuad, a, b)` for every quad of a unit, in order, unrolled.
template <int kQuad, class U, class Use>
PARETOBIT_INLINE void each_quad(U& unit, Use&& use) {
  Bytes a, b;
  unit.template planes<kQuad>(a, b);
  use(kQuad, a, b);
  if constexpr (kQuad + 1 < U::kQuads) each_quad<kQuad + 1>(unit, use);
}
