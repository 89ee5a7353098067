// Which kernels this machine can run. Apart from dispatch.cpp, so that nothing here is ever built for a newer machine.
#include "cpu.h"
#include "kernels.h"

namespace paretobit {

std::vector<std::string> available() {
  std::vector<std::string> names;
#if defined(__x86_64__)
  __builtin_cpu_init();  // reads CPUID, and XGETBV for what the operating system saves
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool vnni = avx512 && __builtin_cpu_supports("avx512vnni");
  if (vnni && __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("gfni")) names.push_back("avx512_vbmi");
  if (vnni) names.push_back("avx512_vnni");
  if (avx512) names.push_back("avx512");
  if (__builtin_cpu_supports("avx2") && has_f16c()) names.push_back("avx2");
#elif defined(__aarch64__)
  if (has_dotprod() && has_i8mm()) names.push_back("neon_i8mm");
  if (has_dotprod()) names.push_back("neon_dotprod");
  names.push_back("neon");
#elif defined(__wasm_simd128__)
  names.push_back("wasm");
#endif
  names.push_back("scalar");
  return names;
}

}  // namespace paretobit
