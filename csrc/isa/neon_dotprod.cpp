// NEON with the dot product: Cortex-A76, Apple M1 and later.
#include "region.h"

#if defined(__aarch64__)
PARETOBIT_BEGIN(PARETOBIT_DOTPROD)
namespace paretobit::neon_dotprod {
namespace {
#define PARETOBIT_WIDTH 4
#define PARETOBIT_DOT 1
#include "lanes.inl"
#include "bytes.inl"
#include "isa/neon.h"
#include "kernels.inl"
}  // namespace
PARETOBIT_TABLE("neon_dotprod")
}  // namespace paretobit::neon_dotprod
PARETOBIT_END
#endif
