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
#include <cpuid.h>
#include <immintrin.h>
#endif

#include "half.h"
#include "kernels.h"

#if defined(__clang__)
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
  {name, search_rows, feed_back_rows<float>, feed_back_rows<double>, quantize, spread, multiply, row, \
   read_words}

#if defined(__x86_64__)
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

#if defined(__x86_64__)
// Half-precision conversion, which every processor with AVX2 has unless a hypervisor hides it.
static bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

std::vector<std::string> available() {
  std::vector<std::string> names;
#if defined(__x86_64__)
  __builtin_cpu_init();  // reads CPUID, and XGETBV for what the operating system saves
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && __builtin_cpu_supports("avx512vnni")) names.push_back("avx512_vnni");
  if (avx512) names.push_back("avx512");
  if (__builtin_cpu_supports("avx2") && has_f16c()) names.push_back("avx2");
#elif defined(__aarch64__)
  names.push_back("neon");
#endif
  names.push_back("scalar");
  return names;
}

const Kernels& kernels(const std::string& isa) {
  for (const std::string& name : available()) {
    if (name != isa) continue;
#if defined(__x86_64__)
    if (isa == "avx512_vnni") return avx512_vnni::kKernels;
    if (isa == "avx512") return avx512::kKernels;
    if (isa == "avx2") return avx2::kKernels;
#endif
    return scalar::kKernels;
  }
  throw std::invalid_argument("ISA '" + isa + "' is not available on this machine");
}

}  // namespace paretobit
