// Packed codes, as docs/FORMAT.md defines them; equal byte for byte to paretobit/packing.py.
#pragma once

#include <cstddef>
#include <cstdint>

#include "matrix.h"

namespace paretobit {

// Codes of a grid, of a trellis those of one set of rows; `f` is not a float.
constexpr int levels_of(Format f, int set = 0) {
  if (is_trellis(f)) return 1 << code_bits(twice_bits(f), set);
  return f == Format::kTrits ? 3 : f == Format::k8 ? 255 : 1 << unit_vectors(f);
}

// format: as a number that anyone may have sent. Throws std::invalid_argument on none that is packed, on no or absurdly
// many rows or columns, on a group of none, and on groups in a trellis.
Layout layout_of(int format, size_t rows, size_t columns, size_t group);

// codes (rows, columns) -> packed (tiles, tile_bytes); throws std::invalid_argument on a code outside the grid.
void pack(const Layout& at, const uint8_t* codes, uint8_t* packed, int threads);

// packed (tiles, tile_bytes) -> codes (rows, columns); throws std::invalid_argument on bytes that no pack() writes.
void unpack(const Layout& at, const uint8_t* packed, uint8_t* codes, int threads);

// What turns codes into numbers. `zero` is null where the grid has one zero point for all (`offset`).
struct Affine {
  const uint16_t* scale;  // fp16 (rows, groups)
  size_t group;           // columns a scale covers, 1 <= group
  float offset;
};

// scale * (code - zero), each product rounded once: QTensor.dequant(), bit for bit. zero: codes (rows,
// groups).
void dequant(const uint8_t* codes, const uint8_t* zero, const Affine& affine, size_t rows, size_t columns,
             float* out, int threads);

// The same of a trellis: scale * value of the window, 256 values. twice_bits: 2 ... 8; scale: fp16 (rows,).
void dequant_trellis(const uint8_t* codes, const uint16_t* scale, int twice_bits, const float* values, size_t rows,
                     size_t columns, float* out, int threads);

}  // namespace paretobit
