// NEON as every aarch64 has it: Cortex-A53, A72.
#include "region.h"

#if defined(__aarch64__)
namespace paretobit::neon {
namespace {
#define PARETOBIT_WIDTH 4
#define PARETOBIT_DOT 0
#include "lanes.inl"
#include "bytes.inl"
#include "isa/neon.h"
#include "kernels.inl"
}  // namespace
PARETOBIT_TABLE("neon")
}  // namespace paretobit::neon
#endif
