// WebAssembly with 128-bit vectors.
#include "region.h"

#if defined(__wasm_simd128__)
namespace paretobit::wasm {
namespace {
#define PARETOBIT_WIDTH 4
#include "lanes.inl"
#include "bytes.inl"
#include "isa/wasm.h"
#include "kernels.inl"
}  // namespace
PARETOBIT_TABLE("wasm")
}  // namespace paretobit::wasm
#endif
