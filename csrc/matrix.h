// A packed matrix as it lies in memory, and where everything in it is. docs/FORMAT.md defines the layout.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace paretobit {

// Trellises of 1, 1.5, 2 … 4 bits come last.
enum class Format : uint8_t {
  k1, kTrits, k2, k3, k4, k5, k6, k8, kF16, kBF16, kF32, kT1, kT1Half, kT2, kT2Half, kT3, kT3Half, kT4
};
constexpr int kFormats = int(Format::kT4) + 1;

constexpr size_t kSet = 16;         // rows of a vector
constexpr size_t kMostTile = 64;    // rows of a tile at most
constexpr size_t kVector = 64;      // bytes; a set of rows times four columns
constexpr size_t kTable = 32;       // bytes of a trellis's table: low nibble's levels, then the high one's
constexpr size_t kBlockUnits = 4;   // an activation block is at most this many units of columns

constexpr bool is_float(Format f) { return f == Format::kF16 || f == Format::kBF16 || f == Format::kF32; }
constexpr bool is_trellis(Format f) { return f >= Format::kT1; }

// Of a trellis: twice the bits of a code, on average; and bits of a code of one of its sets of rows.
constexpr int twice_bits(Format f) { return int(f) - int(Format::kT1) + 2; }
constexpr int code_bits(int twice, int set) { return (twice + 1 - set % 2) / 2; }

// Calls use with the format as a type, whose `value` is a constant.
template <class Use>
void with_format(Format f, Use&& use) {
#define PARETOBIT_CASE(format) \
  case Format::format: return use(std::integral_constant<Format, Format::format>())
  switch (f) {
    PARETOBIT_CASE(k1);
    PARETOBIT_CASE(kTrits);
    PARETOBIT_CASE(k2);
    PARETOBIT_CASE(k3);
    PARETOBIT_CASE(k4);
    PARETOBIT_CASE(k5);
    PARETOBIT_CASE(k6);
    PARETOBIT_CASE(k8);
    PARETOBIT_CASE(kF16);
    PARETOBIT_CASE(kBF16);
    PARETOBIT_CASE(kF32);
    PARETOBIT_CASE(kT1);
    PARETOBIT_CASE(kT1Half);
    PARETOBIT_CASE(kT2);
    PARETOBIT_CASE(kT2Half);
    PARETOBIT_CASE(kT3);
    PARETOBIT_CASE(kT3Half);
    PARETOBIT_CASE(kT4);
  }
#undef PARETOBIT_CASE
}

// Rows of a tile, whose codes are interleaved: a trellis's are a ring.
constexpr size_t tile_rows(Format f) { return is_trellis(f) ? 64 : 32; }
constexpr int tile_sets(Format f) { return int(tile_rows(f) / kSet); }

// Columns of a unit, the smallest run of columns with bytes of its own: vectors hold whole planes of codes.
constexpr size_t unit_columns(Format f) { return f == Format::kTrits ? 20 : 16; }

// 64-byte vectors of a unit of a tile.
constexpr size_t unit_vectors(Format f) {
  switch (f) {
    case Format::k1: return 1;
    case Format::kTrits: return 2;
    case Format::k2: return 2;
    case Format::k3: return 3;
    case Format::k4: return 4;
    case Format::k5: return 5;
    case Format::k6: return 6;
    case Format::k8: return 8;
    default: return is_trellis(f) ? size_t(twice_bits(f)) : 0;
  }
}

// Bytes of a tile's 32 stored zero points: fields of 2, 4 or 8 bits.
constexpr size_t zero_bytes(Format f) {
  switch (f) {
    case Format::k1:
    case Format::kTrits:
    case Format::k2: return 8;
    case Format::k3:
    case Format::k4: return 16;
    default: return 32;
  }
}

// Whether every sum of a low and a high entry is a level, at most 127: kernels add them up in seven bits.
inline bool is_table(const uint8_t* table) {
  return *std::max_element(table, table + kTable / 2) + *std::max_element(table + kTable / 2, table + kTable) <= 127;
}

// Bytes of an element of a float matrix.
constexpr size_t float_bytes(Format f) { return f == Format::kF32 ? 4 : 2; }

// The numbers that follow from format, shape and group. Groups are padded to whole units of columns; the padded column
// order is what activations are laid out in. Within a group every `block` padded columns share an activation scale.
struct Layout {
  Format format;
  size_t rows, columns, group;  // group = columns for one scale a row
  size_t tile;  // rows of one
  size_t tiles, groups;
  size_t unit;          // columns of a unit
  size_t group_units;   // units of a full group
  size_t last_units;    // units of the last group
  size_t units;         // of a row
  size_t padded;        // columns with padding; `columns` where the format is a float
  size_t token_bytes;   // bytes from a token's activation codes to the next one's
  size_t group_blocks;  // activation blocks of a full group
  size_t blocks;        // of a row
  size_t tile_bytes;    // codes of a tile

  Layout(Format f, size_t row_count, size_t column_count, size_t group_columns)
      : format(f), rows(row_count), columns(column_count), group(std::min(group_columns, column_count)) {
    tile = tile_rows(f);
    tiles = (rows + tile - 1) / tile;
    if (is_float(f)) {
      groups = 1, unit = 1, group_units = last_units = units = padded = columns, group_blocks = blocks = 0;
      token_bytes = 0;
      tile_bytes = tile * columns * float_bytes(f);
      return;
    }
    groups = (columns - 1) / group + 1;
    unit = unit_columns(f);
    group_units = (group + unit - 1) / unit;
    last_units = (columns - (groups - 1) * group + unit - 1) / unit;
    units = (groups - 1) * group_units + last_units;
    padded = units * unit;
    token_bytes = ((padded + 63) / 64 | 1) * 64;  // an odd number of cache lines, so that tokens share no set of a cache
    group_blocks = (group_units + kBlockUnits - 1) / kBlockUnits;
    blocks = (groups - 1) * group_blocks + (last_units + kBlockUnits - 1) / kBlockUnits;
    tile_bytes = units * unit_vectors(f) * kVector;
  }

  // Whether activations laid out for one suit the other.
  bool same_columns(const Layout& other) const {
    return is_float(format) == is_float(other.format) && columns == other.columns &&
           (is_float(format) || (unit == other.unit && group == other.group));
  }
};

// Sizes are checked by whoever makes one; kernels trust them.
struct Matrix {
  Layout layout;
  const uint8_t* codes = nullptr;   // (tiles, tile_bytes); of a float format (rows, columns) in row-major order
  const uint16_t* scale = nullptr;  // fp16 (tiles, groups, tile)
  const uint8_t* zero = nullptr;    // (tiles, groups, zero_bytes), or null where the grid stores none
  int twice_zero = 0;               // twice the grid's own zero point: 1, 2, 3, 254 … ; unused with stored ones
  const uint8_t* table = nullptr;   // of a trellis: (kTable,), no sum of a low and a high one above 127
};

// Kernels take int8 activations of so many tokens at once: they read those of up to seven that follow the last one, whatever
// lies there, and keep nothing of what comes of it. Codes, scales and sums must have room for them.
constexpr size_t kAtOnce = 8;
constexpr size_t in_eights(size_t count) { return (count + kAtOnce - 1) / kAtOnce * kAtOnce; }
constexpr size_t room_for(size_t count) { return count == 1 ? 1 : in_eights(count); }

// Activations of `count` tokens, laid out for one Layout's columns. Codes, scales and sums of int8 activations, or
// values of float32 ones; the other is null.
struct Inputs {
  size_t count = 0;
  const float* values = nullptr;   // (count, padded)
  const int8_t* codes = nullptr;   // (room_for(count), padded), the Layout's token_bytes from each other
  const float* scales = nullptr;   // (blocks, room_for(count)), `step` from block to block
  const int32_t* sums = nullptr;   // likewise, of the codes
  size_t step = 1;
};

}  // namespace paretobit
