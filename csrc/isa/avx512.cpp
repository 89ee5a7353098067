// AVX-512 without VNNI: Skylake.
#include "region.h"

#if defined(__x86_64__)
PARETOBIT_BEGIN("avx512f,avx512bw,avx512vl,avx512dq")
namespace paretobit::avx512 {
namespace {
#define PARETOBIT_WIDTH 16
#include "lanes.inl"
#include "bytes.inl"
#include "isa/madd.h"
#include "kernels.inl"
}  // namespace
PARETOBIT_TABLE("avx512")
}  // namespace paretobit::avx512
PARETOBIT_END
#endif
