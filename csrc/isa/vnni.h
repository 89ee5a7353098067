// x86 with VNNI: one instruction multiplies a register of codes with as many activations and adds in fours, without
// saturation.
#include "x86.h"

#if PARETOBIT_WIDTH == 16
#define PARETOBIT_DPBUSD _mm512_dpbusd_epi32
#else
#define PARETOBIT_DPBUSD _mm256_dpbusd_avx_epi32
#endif

constexpr int alike(int) { return 255; }

struct SumPart {
  Integers lane;  // as what comes out of it: GCC would keep a copy in another type
};

PARETOBIT_INLINE SumPart no_sum_part() { return SumPart{}; }

template <int kTop>
PARETOBIT_INLINE void add_dot(SumPart& sum, Octets codes, const Quad& quad) {
  sum.lane = (Integers)PARETOBIT_DPBUSD((Wide)sum.lane, (Wide)codes, quad.repeated);
}

template <int kTop>
PARETOBIT_INLINE void spill(SumPart&, int) {}

template <int kTop>
PARETOBIT_INLINE Integers total(const SumPart& sum, int32_t) {
  return sum.lane;
}
