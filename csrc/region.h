// What the files in isa/ share: each compiles every algorithm once, for one ISA, inside a target region of its own.
// Nothing that is shared between ISAs may be defined inside a region: the linker keeps one copy of an inline
// function, and it could be the one with instructions that this machine lacks. So all headers come first, here.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <stdexcept>

#if defined(__x86_64__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC's own _mm512_undefined_ps and the like
#include <immintrin.h>
#pragma GCC diagnostic pop
#elif defined(__aarch64__)
#include <arm_neon.h>
#elif defined(__wasm_simd128__)
#include <wasm_simd128.h>
#endif

#include "half.h"
#include "kernels.h"
#include "trits.h"

#if defined(__aarch64__) && defined(__clang__)
#define PARETOBIT_DOTPROD "dotprod"
#define PARETOBIT_I8MM "dotprod,i8mm"
#elif defined(__aarch64__)
#define PARETOBIT_DOTPROD "arch=armv8.2-a+dotprod"
#define PARETOBIT_I8MM "arch=armv8.2-a+dotprod+i8mm"
#endif

#if defined(PARETOBIT_BEGIN)  // a test's, which emulates the intrinsics
#elif defined(__clang__)
#define PARETOBIT_BEGIN(features) \
  _Pragma(PARETOBIT_TEXT(clang attribute push(__attribute__((target(features))), apply_to = function)))
#define PARETOBIT_END _Pragma("clang attribute pop")
#elif defined(__GNUC__)
#define PARETOBIT_BEGIN(features) _Pragma("GCC push_options") _Pragma(PARETOBIT_TEXT(GCC target(features)))
#define PARETOBIT_END _Pragma("GCC pop_options")
#else
#error "paretobit's kernels use the vector types of GCC and Clang"
#endif
#define PARETOBIT_TEXT(...) #__VA_ARGS__

// The file's table, which dispatch.cpp chooses among.
#define PARETOBIT_TABLE(name)                                                                                    \
  extern const Kernels kKernels;                                                                                 \
  const Kernels kKernels{name,           search_rows,    feed_back_rows<float>, feed_back_rows<double>, fake,          \
                         fake_gradients, divergence,     trellis,               quantize,               spread,        \
                         multiply,       row,            read_words,            products,               rms_norm,      \
                         add,            scale,          gate,                  rotate,                 to_half,       \
                         round_rows,     rotate_inputs,  unrotate_inputs,       attend};
