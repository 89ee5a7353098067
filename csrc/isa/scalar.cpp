// What every machine of an architecture has, and what the other ISAs must equal bit for bit.
#include "region.h"

namespace paretobit::scalar {
namespace {
#define PARETOBIT_WIDTH 4
#define PARETOBIT_LAMBDA  // inlined where the compiler thinks it small
#include "lanes.inl"
#include "bytes.inl"
#include "isa/generic.h"
#include "kernels.inl"
}  // namespace
PARETOBIT_TABLE("scalar")
}  // namespace paretobit::scalar
