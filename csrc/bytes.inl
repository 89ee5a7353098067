// 64 bytes, or 16 int32, on registers of PARETOBIT_WIDTH floats; included once per ISA after lanes.inl.

typedef uint8_t Octets __attribute__((vector_size(4 * PARETOBIT_WIDTH)));
typedef uint16_t Shorts __attribute__((vector_size(4 * PARETOBIT_WIDTH)));

struct Bytes {
  Octets part[kParts];
};
struct Ints {
  Integers part[kParts];
};

PARETOBIT_INLINE Bytes load_bytes(const uint8_t* from) {
  Bytes r;  // part by part: compilers copy a struct through 16-byte registers
  PARETOBIT_EACH std::memcpy(&r.part[p], from + p * sizeof r.part[p], sizeof r.part[p]);
  return r;
}
PARETOBIT_INLINE Bytes operator|(const Bytes& a, const Bytes& b) {
  Bytes r;
  PARETOBIT_EACH r.part[p] = a.part[p] | b.part[p];
  return r;
}
PARETOBIT_INLINE Bytes operator+(const Bytes& a, const Bytes& b) {
  Bytes r;
  PARETOBIT_EACH r.part[p] = a.part[p] + b.part[p];
  return r;
}

PARETOBIT_INLINE Bytes all_bytes(uint8_t x) {
  Bytes r;
  PARETOBIT_EACH r.part[p] = x - Octets{};
  return r;
}

PARETOBIT_INLINE Ints all(int32_t x) {
  Ints r;
  PARETOBIT_EACH r.part[p] = x - Integers{};
  return r;
}
PARETOBIT_INLINE Ints operator+(const Ints& a, const Ints& b) {
  Ints r;
  PARETOBIT_EACH r.part[p] = a.part[p] + b.part[p];
  return r;
}
PARETOBIT_INLINE Ints operator-(const Ints& a, const Ints& b) {
  Ints r;
  PARETOBIT_EACH r.part[p] = a.part[p] - b.part[p];
  return r;
}
PARETOBIT_INLINE Ints operator*(const Ints& a, const Ints& b) {
  Ints r;
  PARETOBIT_EACH r.part[p] = a.part[p] * b.part[p];
  return r;
}
PARETOBIT_INLINE Lanes to_float(const Ints& a) {
  Lanes r;
  PARETOBIT_EACH r.part[p] = __builtin_convertvector(a.part[p], Register);
  return r;
}

// Byte k of each of the sixteen dwords.
template <int k>
PARETOBIT_INLINE Ints byte_of(const Bytes& a) {
  Ints r;
  PARETOBIT_EACH r.part[p] = ((Integers)a.part[p] >> 8 * k) & 255;
  return r;
}
