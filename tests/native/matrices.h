// Packed matrices and activations to try kernels on. Buffers have exactly the bytes that the layout asks for, so that
// a sanitizer sees any byte read beside them.
#pragma once

#include <string>
#include <vector>

#include "generate.h"
#include "kernels.h"

namespace paretobit::test {

enum class Fill {
  random,   // any codes, any activations
  extreme,  // codes at either end of the grid, activations +-127 that agree with them: the largest sums there are
  ends,     // every code at the top, every activation 127: what saturates 16-bit pairs
  tiny,     // subnormal scales and activations
};

struct Packed {
  Matrix matrix;
  std::vector<uint8_t> codes, zero, table;
  std::vector<uint16_t> scale;
};

// Activations of some tokens, in codes and in values.
struct Tokens {
  size_t count;
  std::vector<float> values, scales;
  std::vector<int8_t> codes;
  std::vector<int32_t> sums;

  Inputs as_codes() const { return {count, nullptr, codes.data(), scales.data(), sums.data(), room_for(count)}; }
  Inputs as_values() const { return {count, values.data(), nullptr, nullptr, nullptr}; }
};

const char* name_of(Format f);

// twice_zero of the grids that store no zero point, 0 for none such: `which` 0 or 1.
int twice_zero_of(Format f, int which);

// stored: with a zero point for every group; otherwise twice_zero_of(f, which).
Packed make_matrix(const Layout& layout, bool stored, int which, Fill fill, Random& random);
Tokens make_tokens(const Layout& layout, size_t count, Fill fill, Random& random);

// Activations (columns,) for `quantize`: blocks of very different sizes, zeros and ties among them.
std::vector<float> make_activations(const Layout& layout, Fill fill, Random& random);

}  // namespace paretobit::test
