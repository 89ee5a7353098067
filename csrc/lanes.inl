// Sixteen float lanes on registers of PARETOBIT_WIDTH floats. Included once per ISA namespace by
// dispatch.cpp, inside that ISA's target region. Every operation is one IEEE operation per lane, so every ISA
// gives the same bits. A comparison that involves NaN is false.

typedef float Register __attribute__((vector_size(4 * PARETOBIT_WIDTH)));
typedef int32_t Integers __attribute__((vector_size(4 * PARETOBIT_WIDTH)));
constexpr int kParts = 16 / PARETOBIT_WIDTH;

struct Lanes {
  Register part[kParts];
};
struct Mask {
  Integers part[kParts];
};

#define PARETOBIT_EACH for (int p = 0; p < kParts; ++p)
#ifndef PARETOBIT_LAMBDA  // empty in a file that would rather be small
#define PARETOBIT_LAMBDA __attribute__((always_inline))
#endif
#define PARETOBIT_MEMBER inline PARETOBIT_LAMBDA
#define PARETOBIT_INLINE static PARETOBIT_MEMBER
#define PARETOBIT_APART __attribute__((noinline))

PARETOBIT_INLINE Lanes all(float x) {
  Lanes r;
  PARETOBIT_EACH r.part[p] = x - Register{};
  return r;
}
PARETOBIT_INLINE Lanes load(const float* from) {
  Lanes r;  // part by part: compilers copy a struct through 16-byte registers
  PARETOBIT_EACH std::memcpy(&r.part[p], from + p * PARETOBIT_WIDTH, sizeof r.part[p]);
  return r;
}
PARETOBIT_INLINE void store(float* to, const Lanes& a) {
  PARETOBIT_EACH std::memcpy(to + p * PARETOBIT_WIDTH, &a.part[p], sizeof a.part[p]);
}

PARETOBIT_INLINE Lanes operator+(const Lanes& a, const Lanes& b) {
  Lanes r;
  PARETOBIT_EACH r.part[p] = a.part[p] + b.part[p];
  return r;
}
PARETOBIT_INLINE Lanes operator-(const Lanes& a, const Lanes& b) {
  Lanes r;
  PARETOBIT_EACH r.part[p] = a.part[p] - b.part[p];
  return r;
}
PARETOBIT_INLINE Lanes operator*(const Lanes& a, const Lanes& b) {
  Lanes r;
  PARETOBIT_EACH r.part[p] = a.part[p] * b.part[p];
  return r;
}
PARETOBIT_INLINE Lanes operator/(const Lanes& a, const Lanes& b) {
  Lanes r;
  PARETOBIT_EACH r.part[p] = a.part[p] / b.part[p];
  return r;
}
PARETOBIT_INLINE Mask operator<(const Lanes& a, const Lanes& b) {
  Mask r;
  PARETOBIT_EACH r.part[p] = a.part[p] < b.part[p];
  return r;
}
PARETOBIT_INLINE Lanes choose(const Mask& m, const Lanes& a, const Lanes& b) {
  Lanes r;
  PARETOBIT_EACH r.part[p] = m.part[p] ? a.part[p] : b.part[p];
  return r;
}
PARETOBIT_INLINE Lanes least(const Lanes& a, const Lanes& b) {
  Lanes r;
  PARETOBIT_EACH r.part[p] = a.part[p] < b.part[p] ? a.part[p] : b.part[p];
  return r;
}
PARETOBIT_INLINE Lanes most(const Lanes& a, const Lanes& b) {
  Lanes r;
  PARETOBIT_EACH r.part[p] = b.part[p] < a.part[p] ? a.part[p] : b.part[p];
  return r;
}

// The integer nearest to each lane, ties to even; |x| < 2^22.
PARETOBIT_INLINE Lanes nearest(const Lanes& x) {
  const Lanes magic = all(12582912.0f);  // 1.5 * 2^23: its last place is worth 1
  return (x + magic) - magic;
}

// Each lane rounded to the nearest half-precision number, ties to even; magnitudes above 65504 become 65504.
PARETOBIT_INLINE Lanes to_half_grid(const Lanes& x) {
  Lanes r;
  PARETOBIT_EACH {
    const Integers sign = (Integers)x.part[p] & INT32_MIN;
    Register size = (Register)((Integers)x.part[p] & INT32_MAX);
    const Register top = 65504.0f - Register{}, bias = 0.75f - Register{};
    size = size < top ? size : top;
    const Integers bits = (Integers)size;
    const Integers normal = (bits + 0xFFF + (bits >> 13 & 1)) & ~0x1FFF;
    // Below 2^-14 halves are 2^-24 apart, as floats are in [0.5, 1).
    const Register tiny = (size + bias) - bias;
    const Register rounded = size < 0x1p-14f ? tiny : (Register)normal;
    r.part[p] = (Register)((Integers)rounded | sign);
  }
  return r;
}
