// AVX-512 with VNNI: Cascade Lake.
#include "region.h"

#if defined(__x86_64__)
PARETOBIT_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
namespace paretobit::avx512_vnni {
namespace {
#define PARETOBIT_WIDTH 16
#include "lanes.inl"
#include "bytes.inl"
#include "isa/vnni.h"
#include "kernels.inl"
}  // namespace
PARETOBIT_TABLE("avx512_vnni")
}  // namespace paretobit::avx512_vnni
PARETOBIT_END
#endif
