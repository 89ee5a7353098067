// Packed codes, as docs/FORMAT.md defines them; equal byte for byte to paretobit/packing.py.
#pragma once

#include <cstddef>
#include <cstdint>

#include "matrix.h"

namespace paretobit {

// The format of codes of `levels` levels; throws std::invalid_argument on levels that have no packing.
Format format_of(int levels);

// Codes of a grid; `f` is not a float.
constexpr int levels_of(Format f) {
  return f == Format::kTrits ? 3 : f == Format::k8 ? 255 : 1 << unit_vectors(f);
}

// Throws std::invalid_argument on levels without packing, on no or absurdly many rows or columns, on a group of none.
Layout layout_of(int levels, size_t rows, size_t columns, size_t group);

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

}  // namespace paretobit
