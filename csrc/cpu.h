// What this processor can do and its operating system saves, asked once.
#pragma once

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace paretobit {

#if defined(__x86_64__)
struct Features {
  bool avx2 = false, avx_vnni = false, avx512 = false, vnni = false, vbmi = false;
};

// Asked of the processor: __builtin_cpu_supports asks the compiler's runtime library, and zig's denies all.
inline Features features() {
  Features has;
  unsigned a, b, c, d, saved, more;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return has;
  const bool f16c = c & bit_F16C;  // every processor with AVX2 has it unless a hypervisor hides it
  __asm__("xgetbv" : "=a"(saved), "=d"(more) : "c"(0));
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return has;
  has.avx2 = (saved & 0x06) == 0x06 && (b & bit_AVX2) && f16c;
  has.avx512 = (saved & 0xE6) == 0xE6 && (b & bit_AVX512F) && (b & bit_AVX512BW) && (b & bit_AVX512VL) &&
               (b & bit_AVX512DQ);
  has.vnni = has.avx512 && (c & bit_AVX512VNNI);
  const bool gfni = c & bit_GFNI;  // what processors have that have VBMI, or VNNI without AVX-512: their kernels use both
  has.vbmi = has.vnni && (c & bit_AVX512VBMI) && gfni;
  if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d)) has.avx_vnni = has.avx2 && gfni && (a >> 4 & 1);
  return has;
}
#elif defined(__aarch64__) && defined(__linux__)
inline bool has_dotprod() { return getauxval(AT_HWCAP) & (1ul << 20); }
inline bool has_i8mm() { return getauxval(AT_HWCAP2) & (1ul << 13); }
#elif defined(__aarch64__) && defined(__APPLE__)
inline bool has_feature(const char* name) {
  int value = 0;
  size_t size = sizeof value;
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value;
}
inline bool has_dotprod() { return has_feature("hw.optional.arm.FEAT_DotProd"); }
inline bool has_i8mm() { return has_feature("hw.optional.arm.FEAT_I8MM"); }
#elif defined(__aarch64__)
inline bool has_dotprod() { return false; }
inline bool has_i8mm() { return false; }
#endif

}  // namespace paretobit
