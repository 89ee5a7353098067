// The kernels once more, as plain loops written from docs/FORMAT.md and the definitions in kernels.h, and packing one
// code at a time. Slow on purpose: what every ISA, the scalar one included, is compared with.
#pragma once

#include "kernels.h"

namespace paretobit::test {

// The code of (row, column), `column` in padded order, in a matrix's codes; `put_code` expects zeros where it writes.
unsigned get_code(const Layout& layout, const uint8_t* codes, size_t row, size_t column);
void put_code(const Layout& layout, uint8_t* codes, size_t row, size_t column, unsigned code);

// The stored zero point of (row, group).
unsigned get_zero(const Layout& layout, const uint8_t* zero, size_t row, size_t group);
void put_zero(const Layout& layout, uint8_t* zero, size_t row, size_t group, unsigned value);

// Where a column lies in padded order.
size_t padded_column(const Layout& layout, size_t column);

// `quantize`, `spread`, `multiply` and `row` as plain loops; the other entries are null.
const Kernels& reference();

}  // namespace paretobit::test
