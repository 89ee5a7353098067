#include "matrices.h"

#include "pack.h"
#include "reference.h"

namespace paretobit::test {
namespace {

// A finite fp16 of moderate size; of `tiny` ones also subnormals and zeros.
uint16_t make_scale(Fill fill, Random& random) {
  const uint16_t sign = random.below(4) ? 0 : 0x8000;
  if (fill == Fill::tiny) return uint16_t(sign | random.below(0x0800));
  return uint16_t(sign | (0x2000 + random.below(0x1800)));  // 2^-7 ... 2^-1
}

unsigned make_code(Fill fill, int levels, size_t column, Random& random) {
  if (fill == Fill::ends) return unsigned(levels - 1);
  if (fill == Fill::extreme) return column % 2 ? 0u : unsigned(levels - 1);
  return random.below(uint32_t(levels));
}

void fill_floats(Packed& packed, Random& random) {
  const Layout& l = packed.matrix.layout;
  packed.codes.resize(l.rows * l.columns * float_bytes(l.format));
  for (size_t i = 0; i < l.rows * l.columns; ++i) {
    const float value = random.spread();
    uint32_t word;
    std::memcpy(&word, &value, 4);
    const auto half = uint16_t(l.format == Format::kBF16 ? word >> 16 : random.below(0x7000) | (word >> 16 & 0x8000));
    if (l.format == Format::kF32) std::memcpy(&packed.codes[4 * i], &word, 4);
    else std::memcpy(&packed.codes[2 * i], &half, 2);
  }
}

// No two entries are more than 127 together. At the ends every level is 127, whatever its window.
std::vector<uint8_t> make_table(Fill fill, Random& random) {
  std::vector<uint8_t> table(kTable);
  for (size_t i = 0; i < kTable; ++i) {
    table[i] = uint8_t(random.below(64));
    if (fill == Fill::ends) table[i] = i < kTable / 2 ? 100 : 27;
    if (fill == Fill::extreme) table[i] = i % 2 ? 63 : 0;
  }
  return table;
}

}  // namespace

const char* name_of(Format f) {
  static const char* const names[] = {"1", "1.58", "2", "3", "4", "5", "6", "8", "fp16", "bf16", "fp32",
                                      "1t", "1.5t", "2t", "2.5t", "3t", "3.5t", "4t"};
  return names[size_t(f)];
}

int twice_zero_of(Format f, int which) {
  if (is_trellis(f)) return which ? 0 : 127;
  const int mid = levels_of(f) - 1, twos = levels_of(f);  // twice (levels - 1) / 2, twice 2^(bits - 1)
  if (which == 0) return mid;
  return f == Format::k1 || f == Format::kTrits || f == Format::k8 ? 0 : twos;
}

Packed make_matrix(const Layout& l, bool stored, int which, Fill fill, Random& random) {
  Packed packed{{l}, {}, {}, {}, {}};
  if (is_float(l.format)) {
    fill_floats(packed, random);
  } else {
    const int levels = levels_of(l.format);
    packed.codes.resize(l.tiles * l.tile_bytes);
    packed.scale.resize(l.tiles * l.groups * l.tile);
    if (stored) packed.zero.resize(l.tiles * l.groups * zero_bytes(l.format));
    for (size_t row = 0; row < l.rows; ++row) {
      const int some = levels_of(l.format, int(row % l.tile / kSet));
      for (size_t c = 0; c < l.columns; ++c)
        put_code(l, packed.codes.data(), row, padded_column(l, c), make_code(fill, some, c, random));
      for (size_t g = 0; g < l.groups; ++g) {
        packed.scale[(row / l.tile * l.groups + g) * l.tile + row % l.tile] = make_scale(fill, random);
        const unsigned zero = fill == Fill::ends ? 0 : random.below(uint32_t(levels));
        if (stored) put_zero(l, packed.zero.data(), row, g, zero);
      }
    }
    if (is_trellis(l.format)) packed.table = make_table(fill, random);
    packed.matrix.table = packed.table.empty() ? nullptr : packed.table.data();
    packed.matrix.scale = packed.scale.data();
    packed.matrix.zero = stored ? packed.zero.data() : nullptr;
    packed.matrix.twice_zero = stored ? 0 : twice_zero_of(l.format, which);
  }
  packed.matrix.codes = packed.codes.data();
  return packed;
}

Tokens make_tokens(const Layout& l, size_t count, Fill fill, Random& random) {
  Tokens tokens{count, {}, {}, {}, {}};
  tokens.values.resize(count * l.padded);
  const size_t step = room_for(count);
  tokens.codes.resize(step * l.token_bytes);
  tokens.scales.resize(step * l.blocks);
  tokens.sums.resize(step * l.blocks);
  for (size_t t = 0; t < count; ++t) {
    for (size_t c = 0; c < l.columns; ++c) {
      const size_t at = padded_column(l, c);
      int code = int(random.below(255)) - 127;
      if (fill == Fill::ends) code = t % 2 ? -127 : 127;
      if (fill == Fill::extreme) code = c % 2 == t % 2 ? 127 : -127;
      if (!is_float(l.format)) tokens.codes[t * l.token_bytes + at] = int8_t(code);
      tokens.values[t * l.padded + at] = fill == Fill::tiny ? random.symmetric() * 0x1p-120f : random.spread();
    }
    for (size_t b = 0; b < l.blocks; ++b)
      tokens.scales[b * step + t] = (fill == Fill::tiny ? 0x1p-100f : 0.01f) * (1.0f + random.symmetric());
    size_t block = 0;
    for (size_t g = 0; g < l.groups && l.blocks; ++g) {  // floats have no blocks
      const size_t units = g + 1 == l.groups ? l.last_units : l.group_units, start = g * l.group_units;
      for (size_t u = 0; u < units; ++u)
        for (size_t i = 0; i < l.unit; ++i)
          tokens.sums[(block + u / kBlockUnits) * step + t] += tokens.codes[t * l.token_bytes + (start + u) * l.unit + i];
      block += (units + kBlockUnits - 1) / kBlockUnits;
    }
  }
  return tokens;
}

std::vector<float> make_activations(const Layout& l, Fill fill, Random& random) {
  std::vector<float> x(l.columns);
  int exponent = 0, kind = 0;
  for (size_t c = 0; c < l.columns; ++c) {
    if (c % 16 == 0) exponent = int(random.below(41)) - 20, kind = int(random.below(5));
    x[c] = random.symmetric() * Random::power(exponent);
    if (kind == 0) x[c] = 0.0f;
    if (fill == Fill::tiny) x[c] *= 0x1p-110f;
    if (fill == Fill::ends) x[c] = c % 3 ? 1.0f : -1.0f;
    // Halves of steps of a block whose largest is 127: each must go to the even neighbour.
    if (fill == Fill::extreme) x[c] = c % 16 == 5 ? 127.0f : float(random.below(254)) - 126.5f;
  }
  return x;
}

}  // namespace paretobit::test
