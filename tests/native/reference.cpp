#include "reference.h"

#include <cmath>

#include "half.h"

namespace paretobit::test {
namespace {

int plain_bits(Format f) {  // bits of a code's low part that lies alone or in a nibble
  return f == Format::k8 ? 8 : 4;
}

// A field of `bits` bits at bit `at` of one byte.
struct Field {
  size_t vector;
  int at, bits;
};

// Where bit `bit` of a quad's number lies, which has the codes of all sets, the last one's lowest.
Field ring_bit(int twice, size_t q, int bit) {
  const auto six = [q](size_t first, int at) {  // the fourth quad's field lies in what the others leave of three bytes
    return q < 3 ? Field{first + q, at, 1} : Field{first + size_t(at / 2), 6 + at % 2, 1};
  };
  const size_t half = q / 2, odd = q % 2;
  switch (twice) {
    case 2: return {half, int(4 * odd) + bit, 1};
    case 3: return six(0, bit);
    case 5: return bit < 8 ? Field{q, bit, 1} : Field{4, int(2 * q) + bit - 8, 1};
    case 6: return bit < 8 ? Field{3 * half + odd, bit, 1} : Field{3 * half + 2, int(4 * odd) + bit - 8, 1};
    case 7: return bit < 8 ? Field{q, bit, 1} : six(4, bit - 8);
    case 8: return bit < 8 ? Field{2 * q + 1, bit, 1} : Field{2 * q, bit - 8, 1};
    default: return {q, bit, 1};
  }
}

// Where the bits of plane (s, q) lie, lowest first.
size_t ring_fields_of(Format f, size_t s, size_t q, Field* fields) {
  int start = 0;
  for (int newer = 3; newer > int(s); --newer) start += code_bits(twice_bits(f), newer);
  const int bits = code_bits(twice_bits(f), int(s));
  for (int bit = 0; bit < bits; ++bit) fields[bit] = ring_bit(twice_bits(f), q, start + bit);
  return size_t(bits);
}

size_t fields_of(Format f, size_t s, size_t q, Field* fields) {
  if (is_trellis(f)) return ring_fields_of(f, s, q, fields);
  const size_t p = 4 * s + q;
  const int low = int(p), pair = int(2 * q);
  switch (f) {
    case Format::k1: fields[0] = {0, low, 1}; return 1;
    case Format::k2: fields[0] = {s, pair, 2}; return 1;
    case Format::k3:
      if (p < 6) {
        fields[0] = {p / 2, int(p % 2) * 3, 3};
        return 1;
      }
      fields[0] = {p - 6, 6, 2}, fields[1] = {2, int(p), 1};
      return 2;
    case Format::k8: fields[0] = {p, 0, plain_bits(f)}; return 1;
    default: break;
  }
  fields[0] = {p / 2, int(p % 2) * 4, plain_bits(f)};
  if (f == Format::k5) fields[1] = {4, low, 1};
  if (f == Format::k6) fields[1] = {4 + s, pair, 2};
  return f == Format::k4 ? 1 : 2;
}

// The byte and plane of a code.
struct Place {
  size_t unit, s, q, byte;  // unit: first byte of the unit
};
Place place_of(const Layout& l, size_t row, size_t column) {
  const size_t unit = column / l.unit, inside = column % l.unit, r = row % l.tile;
  const size_t start = row / l.tile * l.tile_bytes + unit * unit_vectors(l.format) * kVector;
  return {start, r / 16, inside / 4, r % 16 * 4 + inside % 4};
}

const unsigned kPowers[5] = {81, 27, 9, 3, 1};

float own_zero(const Matrix& m, size_t row, size_t group) {
  return m.zero ? float(get_zero(m.layout, m.zero, row, group)) : float(m.twice_zero) / 2;
}

float scale_of(const Matrix& m, size_t row, size_t group) {
  const Layout& l = m.layout;
  return half_to_float(m.scale[(row / l.tile * l.groups + group) * l.tile + row % l.tile]);
}

// What the zero point is subtracted from: a code, or the level of a window over the codes of a ring.
unsigned number_at(const Matrix& m, size_t row, size_t column) {
  const Layout& l = m.layout;
  if (!is_trellis(l.format)) return get_code(l, m.codes, row, column);
  const size_t first = row / 64 * 64;
  size_t place = row % 16 * 4 + row % 64 / 16;
  unsigned window = 0;
  for (int shift = 0; shift < 8; shift += code_bits(twice_bits(l.format), int(place % 4)), place = (place + 63) % 64)
    window |= get_code(l, m.codes, first + place % 4 * 16 + place / 4, column) << shift;
  return m.table[window & 15] + m.table[16 + (window >> 4 & 15)];
}

// Calls visit(group, block, first, last) for every activation block, in padded columns.
template <class Visit>
void each_block(const Layout& l, Visit&& visit) {
  size_t block = 0;
  for (size_t g = 0; g < l.groups; ++g) {
    const size_t units = g + 1 == l.groups ? l.last_units : l.group_units, start = g * l.group_units;
    for (size_t u = 0; u < units; u += kBlockUnits, ++block)
      visit(g, block, (start + u) * l.unit, (start + std::min(u + kBlockUnits, units)) * l.unit);
  }
}

void spread(const Layout& l, const float* x, float* values) {
  std::fill(values, values + l.padded, 0.0f);
  for (size_t c = 0; c < l.columns; ++c) values[padded_column(l, c)] = x[c];
}

void quantize(const Layout& l, const float* x, int8_t* codes, float* scales, int32_t* sums, size_t step) {
  std::vector<float> values(l.padded);
  spread(l, x, values.data());
  each_block(l, [&](size_t, size_t block, size_t first, size_t last) {
    float most = 0;
    for (size_t c = first; c < last; ++c) most = std::max(most, std::fabs(values[c]));
    if (most < 0x1p-100f) most = 0;
    scales[block * step] = most / 127.0f;
    sums[block * step] = 0;
    for (size_t c = first; c < last; ++c) {
      codes[c] = most == 0 ? int8_t(0) : int8_t(std::nearbyint(values[c] * (127.0f / most)));
      sums[block * step] += codes[c];
    }
  });
}

float float_at(const Matrix& m, size_t row, size_t column) {
  const size_t at = row * m.layout.columns + column;
  if (m.layout.format == Format::kF32) {
    float value;
    std::memcpy(&value, m.codes + 4 * at, 4);
    return value;
  }
  uint16_t half;
  std::memcpy(&half, m.codes + 2 * at, 2);
  if (m.layout.format == Format::kF16) return half_to_float(half);
  const uint32_t bits = uint32_t(half) << 16;
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}

float float_product(const Matrix& m, const float* x, size_t row) {
  float lane[16] = {};
  for (size_t c = 0; c < m.layout.columns; ++c) lane[c % 16] += float_at(m, row, c) * x[c];
  for (int step = 8; step; step /= 2)
    for (int l = 0; l < step; ++l) lane[l] += lane[l + step];
  return lane[0];
}

float value_product(const Matrix& m, const float* x, size_t row) {
  float sum = 0;
  each_block(m.layout, [&](size_t g, size_t, size_t first, size_t last) {
    float part[4] = {};
    for (size_t c = first; c < last; ++c)
      part[c % 4] += (float(number_at(m, row, c)) - own_zero(m, row, g)) * x[c];
    sum += ((part[0] + part[1]) + (part[2] + part[3])) * scale_of(m, row, g);
  });
  return sum;
}

float code_product(const Matrix& m, const int8_t* codes, const float* scales, size_t step, size_t row) {
  float sum = 0;
  each_block(m.layout, [&](size_t g, size_t block, size_t first, size_t last) {
    const int twice = int(2 * own_zero(m, row, g));
    int doubled = 0;
    for (size_t c = first; c < last; ++c)
      doubled += (2 * int(number_at(m, row, c)) - twice) * codes[c];
    sum += 0.5f * float(doubled) * (scale_of(m, row, g) * scales[block * step]);
  });
  return sum;
}

void multiply(const Matrix& m, const Inputs& in, size_t first, size_t last, float* out, size_t stride) {
  const Layout& l = m.layout;
  for (size_t t = 0; t < in.count; ++t)
    for (size_t row = first * l.tile; row < std::min(last * l.tile, l.rows); ++row) {
      float& to = out[t * stride + row];
      if (is_float(l.format)) to = float_product(m, in.values + t * l.padded, row);
      else if (in.values) to = value_product(m, in.values + t * l.padded, row);
      else to = code_product(m, in.codes + t * l.token_bytes, in.scales + t, in.step, row);
    }
}

void row_of(const Matrix& m, size_t row, float* out) {
  const Layout& l = m.layout;
  for (size_t c = 0; c < l.columns; ++c) {
    const size_t g = c / l.group;
    out[c] = is_float(l.format) ? float_at(m, row, c)
                                : scale_of(m, row, g) * (float(number_at(m, row, padded_column(l, c))) -
                                                         own_zero(m, row, g));
  }
}

}  // namespace

size_t padded_column(const Layout& l, size_t column) {
  return is_float(l.format) ? column : column / l.group * l.group_units * l.unit + column % l.group;
}

unsigned get_code(const Layout& l, const uint8_t* codes, size_t row, size_t column) {
  const Place at = place_of(l, row, column);
  if (l.format == Format::kTrits) {
    unsigned x = codes[at.unit + at.s * kVector + at.byte], code = 0;
    for (size_t q = 0; q <= at.q; ++q) code = 3 * (x + 1) >> 8, x = (3 * x + 2) & 255;
    return code;
  }
  Field fields[4];
  const size_t count = fields_of(l.format, at.s, at.q, fields);
  unsigned code = 0;
  for (size_t i = 0, shift = 0; i < count; shift += size_t(fields[i].bits), ++i) {
    const unsigned byte = codes[at.unit + fields[i].vector * kVector + at.byte];
    code |= (byte >> fields[i].at & ((1u << fields[i].bits) - 1)) << shift;
  }
  return code;
}

void put_code(const Layout& l, uint8_t* codes, size_t row, size_t column, unsigned code) {
  const Place at = place_of(l, row, column);
  if (l.format == Format::kTrits) {
    uint8_t& byte = codes[at.unit + at.s * kVector + at.byte];
    const unsigned number = (243u * (byte + 1u) + 255) / 256 - 1 + code * kPowers[at.q];
    byte = uint8_t(256 * number / 243);
    return;
  }
  Field fields[4];
  const size_t count = fields_of(l.format, at.s, at.q, fields);
  for (size_t i = 0; i < count; ++i) {
    const unsigned part = code & ((1u << fields[i].bits) - 1);
    codes[at.unit + fields[i].vector * kVector + at.byte] |= uint8_t(part << fields[i].at);
    code >>= fields[i].bits;
  }
}

unsigned get_zero(const Layout& l, const uint8_t* zero, size_t row, size_t group) {
  const size_t bytes = zero_bytes(l.format), fields = l.tile / bytes, r = row % l.tile;
  const int bits = int(8 / fields);
  return zero[(row / l.tile * l.groups + group) * bytes + r % bytes] >> (r / bytes * size_t(bits)) & ((1u << bits) - 1);
}

void put_zero(const Layout& l, uint8_t* zero, size_t row, size_t group, unsigned value) {
  const size_t bytes = zero_bytes(l.format), fields = l.tile / bytes, r = row % l.tile;
  zero[(row / l.tile * l.groups + group) * bytes + r % bytes] |= uint8_t(value << (r / bytes * (8 / fields)));
}

const Kernels& reference() {
  static const Kernels kernels = [] {
    Kernels k{};
    k.name = "reference";
    k.quantize = quantize, k.spread = spread, k.multiply = multiply, k.row = row_of;
    return k;
  }();
  return kernels;
}

}  // namespace paretobit::test
