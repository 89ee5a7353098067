// The choice between the ISAs' tables. Each is built in isa/<name>.cpp.
#include <stdexcept>

#include "kernels.h"

namespace paretobit {

namespace avx512_vbmi { extern const Kernels kKernels; }
namespace avx512_vnni { extern const Kernels kKernels; }
namespace avx512 { extern const Kernels kKernels; }
namespace avx_vnni { extern const Kernels kKernels; }
namespace avx2 { extern const Kernels kKernels; }
namespace neon_i8mm { extern const Kernels kKernels; }
namespace neon_dotprod { extern const Kernels kKernels; }
namespace neon { extern const Kernels kKernels; }
namespace wasm { extern const Kernels kKernels; }
namespace scalar { extern const Kernels kKernels; }

const Kernels& kernels(const std::string& isa) {
  static const Kernels* const kAll[] = {
#if defined(__x86_64__)
      &avx512_vbmi::kKernels, &avx512_vnni::kKernels, &avx512::kKernels,
      &avx_vnni::kKernels, &avx2::kKernels,
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
