// Which kernels this machine can run. Apart from dispatch.cpp, so that nothing here is ever built for a newer machine.
#include "cpu.h"
#include "kernels.h"

namespace paretobit {

std::vector<std::string> available() {
  std::vector<std::string> names;
#if defined(__x86_64__)
  const Features has = features();
  if (has.vbmi) names.push_back("avx512_vbmi");
  if (has.vnni) names.push_back("avx512_vnni");
  if (has.avx512) names.push_back("avx512");
  if (has.avx_vnni) names.push_back("avx_vnni");
  if (has.avx2) names.push_back("avx2");
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
