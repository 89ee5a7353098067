// Random-sign Hadamard rotations of a linear layer's input: paretobit/rotation.py has the definition.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "span.h"

namespace paretobit {

// As in paretobit/rotation.py.
constexpr size_t kMostRotated = size_t(1) << 20, kMostOrder = 256, kLeastBlock = 16;
constexpr size_t kFoursAtOnce = 4;  // fours of inputs whose signed sums a kernel keeps at hand

// What kernels read. (H ⊗ S) diag(signs) · factor, with H dense and S Sylvester's matrix of order `block`; order 1 stands
// for equal blocks without H.
struct Rotation {
  size_t width, order, block;
  float factor;             // 1 / √(order · block)
  const int8_t* signs;      // (width,), each 1 or -1
  const uint8_t* picks;     // H: see csrc/rotation.cpp
  const uint8_t* unpicks;   // H transposed
};

// A rotation from outside, checked and laid out for the kernels.
class OwnedRotation {
 public:
  // signs: (width,); hadamard: (order, order) row by row, nothing where order is 1. All are copied. Throws
  // std::invalid_argument, which names what is wrong; that rows are orthogonal is not checked.
  OwnedRotation(size_t width, size_t order, Span<int8_t> signs, Span<int8_t> hadamard);

  Rotation view() const { return {width_, order_, block_, factor_, signs_.data(), picks_.data(), unpicks_.data()}; }

 private:
  size_t width_, order_, block_ = 0;
  float factor_ = 1;
  std::vector<int8_t> signs_;
  std::vector<uint8_t> picks_, unpicks_;
};

}  // namespace paretobit
