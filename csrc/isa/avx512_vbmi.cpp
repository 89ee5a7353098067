// AVX-512 with VNNI, VBMI and GFNI: Ice Lake, Zen 4 and later.
#include "region.h"

#if defined(__x86_64__)
PARETOBIT_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi,gfni")
namespace paretobit::avx512_vbmi {
namespace {
#define PARETOBIT_WIDTH 16
#include "lanes.inl"
#include "bytes.inl"
#include "isa/vbmi.h"
#include "kernels.inl"
}  // namespace
PARETOBIT_TABLE("avx512_vbmi")
}  // namespace paretobit::avx512_vbmi
PARETOBIT_END
#endif
