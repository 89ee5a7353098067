// Every algorithm compiled once per ISA, each inside its own target region, and the choice between them.
// Nothing that is shared between ISAs may be defined inside a region: the linker keeps one copy of an inline
// function, and it could be the one with instructions that this machine lacks. So all headers come first.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <stdexcept>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__wasm_simd128__)
#include <wasm_simd128.h>
#endif

#include "half.h"
#include "kernels.h"
#include "trits.h"

#if defined(__aarch64__) && defined(__clang__)
#define PARETOBIT_DOTPROD "dotprod"
#define PARETOBIT_I8MM "dotprod,i8mm"
#elif defined(__aarch64__)
#define PARETOBIT_DOTPROD "arch=armv8.2-a+dotprod"
#define PARETOBIT_I8MM "arch=armv8.2-a+dotprod+i8mm"
#endif

#if defined(PARETOBIT_BEGIN)  // a test's, which emulates the intrinsics
#elif defined(__clang__)
#define PARETOBIT_BEGIN(features) \
  _Pragma(PARETOBIT_TEXT(clang attribute push(__attribute__((target(features))), apply_to = function)))
#define PARETOBIT_END _Pragma("clang attribute pop")
#elif defined(__GNUC__)
#define PARETOBIT_BEGIN(features) _Pragma("GCC push_options") _Pragma(PARETOBIT_TEXT(GCC target(features)))
#define PARETOBIT_END _Pragma("GCC pop_options")
#else
#error "paretobit's kernels use the vector types of GCC and Clang"
#endif
#define PARETOBIT_TEXT(...) #__VA_ARGS__

#define PARETOBIT_KERNELS(name) \
  {name, search_rows, feed_back_rows<float>, feed_back_rows<double>, quantize, spread, multiply, row}

#if defined(__x86_64__)
PARETOBIT_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi")
namespace paretobit::avx512_vbmi {
namespace {
#define PARETOBIT_WIDTH 16
#include "lanes.inl"
#include "bytes.inl"
#include "isa/vbmi.h"
#include "kernels.inl"
#undef PARETOBIT_TRITS
#undef PARETOBIT_WIDTH
}  // namespace
constexpr Kernels kKernels = PARETOBIT_KERNELS("avx512_vbmi");
}  // namespace paretobit::avx512_vbmi
PARETOBIT_END

PARETOBIT_BEGIN("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
namespace paretobit::avx512_vnni {
namespace {
#define PARETOBIT_WIDTH 16
#include "lanes.inl"
#include "bytes.inl"
#include "isa/vnni.h"
#include "kernels.inl"
#undef PARETOBIT_WIDTH
}  // namespace
constexpr Kernels kKernels = PARETOBIT_KERNELS("avx512_vnni");
}  // namespace paretobit::avx512_vnni
PARETOBIT_END

PARETOBIT_BEGIN("avx512f,avx512bw,avx512vl,avx512dq")
namespace paretobit::avx512 {
namespace {
#define PARETOBIT_WIDTH 16
#include "lanes.inl"
#include "bytes.inl"
#include "isa/madd.h"
#include "kernels.inl"
#undef PARETOBIT_WIDTH
}  // namespace
constexpr Kernels kKernels = PARETOBIT_KERNELS("avx512");
}  // namespace paretobit::avx512
PARETOBIT_END

PARETOBIT_BEGIN("avx2,f16c")
namespace paretobit::avx2 {
namespace {
#define PARETOBIT_WIDTH 8
#include "lanes.inl"
#include "bytes.inl"
#include "isa/madd.h"
#include "kernels.inl"
#undef PARETOBIT_WIDTH
}  // namespace
constexpr Kernels kKernels = PARETOBIT_KERNELS("avx2");
}  // namespace paretobit::avx2
PARETOBIT_END
#endif

#if defined(__aarch64__)
PARETOBIT_BEGIN(PARETOBIT_I8MM)
namespace paretobit::neon_i8mm {
namespace {
#define PARETOBIT_WIDTH 4
#define PARETOBIT_DOT 2
#include "lanes.inl"
#include "bytes.inl"
#include "isa/neon.h"
#include "kernels.inl"
#undef PARETOBIT_DOT
#undef PARETOBIT_WIDTH
}  // namespace
constexpr Kernels kKernels = PARETOBIT_KERNELS("neon_i8mm");
}  // namespace paretobit::neon_i8mm
PARETOBIT_END

PARETOBIT_BEGIN(PARETOBIT_DOTPROD)
namespace paretobit::neon_dotprod {
namespace {
#define PARETOBIT_WIDTH 4
#define PARETOBIT_DOT 1
#include "lanes.inl"
#include "bytes.inl"
#include "isa/neon.h"
#include "kernels.inl"
#undef PARETOBIT_DOT
#undef PARETOBIT_WIDTH
}  // namespace
constexpr Kernels kKernels = PARETOBIT_KERNELS("neon_dotprod");
}  // namespace paretobit::neon_dotprod
PARETOBIT_END

namespace paretobit::neon {
namespace {
#define PARETOBIT_WIDTH 4
#define PARETOBIT_DOT 0
#include "lanes.inl"
#include "bytes.inl"
#include "isa/neon.h"
#include "kernels.inl"
#undef PARETOBIT_DOT
#undef PARETOBIT_WIDTH
}  // namespace
constexpr Kernels kKernels = PARETOBIT_KERNELS("neon");
}  // namespace paretobit::neon
#endif

#if defined(__wasm_simd128__)
namespace paretobit::wasm {
namespace {
#define PARETOBIT_WIDTH 4
#include "lanes.inl"
#include "bytes.inl"
#include "isa/wasm.h"
#include "kernels.inl"
#undef PARETOBIT_WIDTH
}  // namespace
constexpr Kernels kKernels = PARETOBIT_KERNELS("wasm");
}  // namespace paretobit::wasm
#endif

namespace paretobit::scalar {  // what every machine of this architecture has: SSE2, NEON
namespace {
#define PARETOBIT_WIDTH 4
#include "lanes.inl"
#include "bytes.inl"
#include "isa/generic.h"
#include "kernels.inl"
#undef PARETOBIT_WIDTH
}  // namespace
constexpr Kernels kKernels = PARETOBIT_KERNELS("scalar");
}  // namespace paretobit::scalar

namespace paretobit {

const Kernels& kernels(const std::string& isa) {
  static const Kernels* const kAll[] = {
#if defined(__x86_64__)
      &avx512_vbmi::kKernels, &avx512_vnni::kKernels, &avx512::kKernels, &avx2::kKernels,
#elif defined(__aarch64__)
      &neon_i8mm::kKernels, &neon_dotprod::kKernels, &neon::kKernels,
#elif defined(__wasm_simd128__)
      &wasm::kKernels,
#endif
      &scalar::kKernels,
  };
  for (const std::string& name : available()) {
    if (name != isa) continue;
    for (const Kernels* found : kAll)
      if (isa == found->name) return *found;
  }
  throw std::invalid_argument("ISA '" + isa + "' is not available on this machine");
}

}  // namespace paretobit
