// Stands in for the compiler's header: x86 intrinsics in portable C, so that AVX-512 kernels run on any machine.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#define SIMDE_NO_NATIVE
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/gfni.h>

// What SIMDe 0.8 lacks.
inline simde__m512i _mm512_cvtepu8_epi32(simde__m128i a) {
  unsigned char bytes[16];
  int wide[16];
  __builtin_memcpy(bytes, &a, 16);
  for (int i = 0; i < 16; ++i) wide[i] = bytes[i];
  return simde_mm512_loadu_si512(wide);
}

inline simde__m512i _mm512_alignr_epi32(simde__m512i high, simde__m512i low, int lanes) {
  int both[32];
  __builtin_memcpy(both, &low, 64);
  __builtin_memcpy(both + 16, &high, 64);
  return simde_mm512_loadu_si512(both + lanes);
}

#define _mm256_dpbusd_avx_epi32 simde_mm256_dpbusd_epi32
