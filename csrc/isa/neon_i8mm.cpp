// NEON with the mixed dot product: Neoverse V1, Apple M2 and later.
#include "region.h"

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
}  // namespace
PARETOBIT_TABLE("neon_i8mm")
}  // namespace paretobit::neon_i8mm
PARETOBIT_END
#endif
