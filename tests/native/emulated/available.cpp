// Instead of csrc/available.cpp: where the intrinsics are emulated, every ISA is at hand.
#include "kernels.h"

namespace paretobit {

std::vector<std::string> available() {
  return {"avx512_vbmi", "avx512_vnni", "avx512", "avx_vnni", "avx2", "scalar"};
}

}  // namespace paretobit
