// Packed codes, as docs/FORMAT.md defines them; equal byte for byte to paretobit/packing.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace paretobit {

// Bits a code takes in the stream; 0 for three levels (five to a byte), -1 for a number of levels that has no
// packing.
int code_bits(int levels);

// Bytes of a row of `columns` codes; throws std::invalid_argument on levels without packing or absurd
// columns.
size_t row_bytes(int levels, size_t columns);

// codes (rows, columns) -> packed (rows, row_bytes); throws std::invalid_argument on a code outside the grid.
void pack(const uint8_t* codes, size_t rows, size_t columns, int levels, uint8_t* packed, int threads);

// packed (rows, row_bytes) -> codes (rows, columns); throws std::invalid_argument on bytes that no pack()
// writes.
void unpack(const uint8_t* packed, size_t rows, size_t columns, int levels, uint8_t* codes, int threads);

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

// The same from packed codes and packed zero points (rows, row_bytes(levels, groups)).
void dequantize(const uint8_t* packed, const uint8_t* zero, const Affine& affine, int levels, size_t rows,
                size_t columns, float* out, int threads);

}  // namespace paretobit
