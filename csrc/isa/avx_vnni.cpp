// AVX2 with VNNI and GFNI: Alder Lake and later, the small cores too, and Zen 5.
#include "region.h"

#if defined(__x86_64__)
PARETOBIT_BEGIN("avx2,f16c,avxvnni,gfni")
namespace paretobit::avx_vnni {
namespace {
#define PARETOBIT_WIDTH 8
#include "lanes.inl"
#include "bytes.inl"
#include "isa/vnni.h"
#include "isa/gfni.h"
#include "kernels.inl"
}  // namespace
PARETOBIT_TABLE("avx_vnni")
}  // namespace paretobit::avx_vnni
PARETOBIT_END
#endif
