// AVX2 with half-precision conversion: Haswell, Zen and later.
#include "region.h"

#if defined(__x86_64__)
PARETOBIT_BEGIN("avx2,f16c")
namespace paretobit::avx2 {
namespace {
#define PARETOBIT_WIDTH 8
#include "lanes.inl"
#include "bytes.inl"
#include "isa/madd.h"
#include "kernels.inl"
}  // namespace
PARETOBIT_TABLE("avx2")
}  // namespace paretobit::avx2
PARETOBIT_END
#endif
