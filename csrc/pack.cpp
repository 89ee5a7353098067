#include "pack.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

#include "half.h"
#include "threads.h"

namespace paretobit {
namespace {

constexpr size_t kMost = size_t(1) << 5 * sizeof(size_t);  // rows or columns: 2^40 in 64 bits, far from overflow
constexpr size_t kQuad = 4, kWords = kVector / 8;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

[[noreturn]] void refuse_code(int code, int levels) {
  refuse("code " + std::to_string(code) + " on a grid of " + std::to_string(levels) + " levels");
}

// 64 bytes as words: whatever is done to all bytes alike is done to eight at a time, in any byte order.
struct Vector {
  uint64_t word[kWords];
};

constexpr uint64_t every_byte(unsigned value) { return value * 0x0101010101010101u; }

// One unit of one tile, in its three forms: rows of codes, planes of codes, packed vectors.
template <Format F>
struct Unit {
  static constexpr size_t kTile = tile_rows(F);
  static constexpr size_t kColumns = unit_columns(F), kQuads = kColumns / kQuad, kPlanes = kTile / kSet * kQuads;
  static constexpr size_t kVectors = unit_vectors(F);
  uint8_t rows[kTile][kColumns];
  Vector planes[kPlanes];
  Vector vectors[kVectors];

  void rows_to_planes() {
    for (size_t r = 0; r < kTile; ++r)
      for (size_t q = 0; q < kQuads; ++q) std::memcpy(in_plane(r, q), rows[r] + kQuad * q, kQuad);
  }
  void planes_to_rows() {
    for (size_t r = 0; r < kTile; ++r)
      for (size_t q = 0; q < kQuads; ++q) std::memcpy(rows[r] + kQuad * q, in_plane(r, q), kQuad);
  }
  // Four codes of row r: plane (r / 16, q), bytes 4 * (r % 16) ...
  uint8_t* in_plane(size_t r, size_t q) {
    return reinterpret_cast<uint8_t*>(&planes[r / kSet * kQuads + q]) + r % kSet * kQuad;
  }
  uint8_t largest_code(size_t first = 0, size_t count = kPlanes) const {
    const auto* code = reinterpret_cast<const uint8_t*>(planes + first);
    uint8_t most = 0;
    for (size_t i = 0; i < count * sizeof(Vector); ++i) most = std::max(most, code[i]);
    return most;
  }
  // Throws where a code is none of the grid's; a trellis may have fewer of them in one set of rows than in the next.
  void check() const {
    constexpr size_t kSets = is_trellis(F) ? kTile / kSet : 1, kShare = kPlanes / kSets;
    for (size_t s = 0; s < kSets; ++s)
      if (const int most = largest_code(s * kShare, kShare), levels = levels_of(F, int(s)); most >= levels)
        refuse_code(most, levels);
  }
};

// The kBits bits from kFrom on of all eight planes; 8 / kBits planes lie side by side in a vector, the first lowest.
template <int kBits, int kFrom>
void join(const Vector* planes, Vector* vectors) {
  constexpr uint64_t kMask = every_byte((1u << kBits) - 1);
  constexpr size_t kShare = 8 / kBits;
  for (size_t v = 0; v < kBits; ++v)
    for (size_t w = 0; w < kWords; ++w) {
      uint64_t word = 0;
      for (size_t f = 0; f < kShare; ++f)
        word |= (planes[kShare * v + f].word[w] >> kFrom & kMask) << kBits * f;
      vectors[v].word[w] = word;
    }
}

// The inverse: the piece is added to what the planes hold already, or starts them.
template <int kBits, int kFrom>
void split(const Vector* vectors, Vector* planes) {
  constexpr uint64_t kMask = every_byte((1u << kBits) - 1);
  constexpr size_t kShare = 8 / kBits;
  for (size_t v = 0; v < kBits; ++v)
    for (size_t f = 0; f < kShare; ++f)
      for (size_t w = 0; w < kWords; ++w) {
        const uint64_t piece = (vectors[v].word[w] >> kBits * f & kMask) << kFrom;
        uint64_t& plane = planes[kShare * v + f].word[w];
        plane = kFrom ? plane | piece : piece;
      }
}

// Two planes a vector leave two bits of each: planes 6 and 7 take those, their third bits those of the last.
void join_three(const Vector* p, Vector* v) {
  constexpr uint64_t kLow = every_byte(3), kThird = every_byte(4);
  for (size_t w = 0; w < kWords; ++w) {
    const uint64_t six = p[6].word[w], seven = p[7].word[w];
    v[0].word[w] = p[0].word[w] | p[1].word[w] << 3 | (six & kLow) << 6;
    v[1].word[w] = p[2].word[w] | p[3].word[w] << 3 | (seven & kLow) << 6;
    v[2].word[w] = p[4].word[w] | p[5].word[w] << 3 | (six & kThird) << 4 | (seven & kThird) << 5;
  }
}

void split_three(const Vector* v, Vector* p) {
  constexpr uint64_t kCode = every_byte(7), kLow = every_byte(3), kThird = every_byte(4);
  for (size_t w = 0; w < kWords; ++w) {
    for (size_t i = 0; i < 3; ++i) {
      p[2 * i].word[w] = v[i].word[w] & kCode;
      p[2 * i + 1].word[w] = v[i].word[w] >> 3 & kCode;
    }
    p[6].word[w] = (v[0].word[w] >> 6 & kLow) | (v[2].word[w] >> 4 & kThird);
    p[7].word[w] = (v[1].word[w] >> 6 & kLow) | (v[2].word[w] >> 5 & kThird);
  }
}

// Five digits n to a byte, floor(256 n / 243): three times one more carries the first digit out of its eight bits.
void join_trits(const Vector* planes, Vector* vectors) {
  for (size_t s = 0; s < 2; ++s) {
    const auto* digit = reinterpret_cast<const uint8_t*>(planes + 5 * s);
    auto* out = reinterpret_cast<uint8_t*>(vectors + s);
    for (size_t i = 0; i < kVector; ++i) {
      unsigned n = 0;
      for (size_t q = 0; q < 5; ++q) n = 3 * n + digit[kVector * q + i];
      out[i] = uint8_t(256 * n / 243);
    }
  }
}

// False on a byte that stands for no digits: 243 times one more than one that does, less 256 n, leaves at most 243.
bool split_trits(const Vector* vectors, Vector* planes) {
  uint8_t most = 0;
  for (size_t s = 0; s < 2; ++s) {
    const auto* in = reinterpret_cast<const uint8_t*>(vectors + s);
    auto* digit = reinterpret_cast<uint8_t*>(planes + 5 * s);
    uint8_t rest[kVector];
    std::memcpy(rest, in, kVector);
    for (size_t q = 0; q < 5; ++q)
      for (size_t i = 0; i < kVector; ++i) {
        const uint16_t three = uint16_t(3 * rest[i] + 3);
        digit[kVector * q + i] = uint8_t(three >> 8);
        rest[i] = uint8_t(three - 1);
      }
    for (size_t i = 0; i < kVector; ++i) most = std::max(most, rest[i]);
  }
  return most < 243;
}

// Fields of 2, 4 or 6 bits of four quads; of 6, three leave two bits of each byte, which the fourth's take.
template <int kBits>
void join_fields(const uint64_t (&field)[4], Vector* v, size_t w) {
  if constexpr (kBits == 2) v[0].word[w] = field[0] | field[1] << 2 | field[2] << 4 | field[3] << 6;
  if constexpr (kBits == 4)
    for (size_t h = 0; h < 2; ++h) v[h].word[w] = field[2 * h] | field[2 * h + 1] << 4;
  if constexpr (kBits == 6)
    for (size_t j = 0; j < 3; ++j) v[j].word[w] = field[j] | (field[3] >> 2 * j & every_byte(3)) << 6;
}

template <int kBits>
uint64_t field_of(const Vector* v, size_t q, size_t w) {
  if constexpr (kBits == 2) return v[0].word[w] >> 2 * q & every_byte(3);
  if constexpr (kBits == 4) return v[q / 2].word[w] >> 4 * (q % 2) & every_byte(15);
  if constexpr (kBits == 6) {
    if (q < 3) return v[q].word[w] & every_byte(63);
    uint64_t field = 0;
    for (size_t j = 0; j < 3; ++j) field |= (v[j].word[w] >> 6 & every_byte(3)) << 2 * j;
    return field;
  }
}

// A trellis: the codes of the four sets are one number, the last set's lowest, of which `low` has eight bits. planes:
// (4 sets, 4 quads).
template <int kTwice>
void join_ring(const Vector* planes, Vector* v) {
  constexpr int kBits = 2 * kTwice;  // of the number
  for (size_t w = 0; w < kWords; ++w) {
    uint64_t low[4] = {}, high[4] = {};
    for (size_t q = 0; q < 4; ++q)
      for (int set = 3, at = 0; set >= 0; at += code_bits(kTwice, set--)) {
        const int bits = code_bits(kTwice, set), fit = std::clamp(8 - at, 0, bits);
        const uint64_t code = planes[4 * size_t(set) + q].word[w];
        if (fit) low[q] |= (code & every_byte((1u << fit) - 1)) << at;
        if (fit < bits) high[q] |= (code >> fit & every_byte((1u << (bits - fit)) - 1)) << std::max(0, at - 8);
      }
    if constexpr (kBits < 8) {
      join_fields<kBits>(low, v, w);
    } else if constexpr (kBits == 12) {
      for (size_t h = 0; h < 2; ++h) {
        v[3 * h].word[w] = low[2 * h], v[3 * h + 1].word[w] = low[2 * h + 1];
        v[3 * h + 2].word[w] = high[2 * h] | high[2 * h + 1] << 4;
      }
    } else if constexpr (kBits == 16) {
      for (size_t q = 0; q < 4; ++q) v[2 * q].word[w] = high[q], v[2 * q + 1].word[w] = low[q];
    } else {
      for (size_t q = 0; q < 4; ++q) v[q].word[w] = low[q];
      if constexpr (kBits > 8) join_fields<kBits - 8>(high, v + 4, w);
    }
  }
}

template <int kTwice>
void split_ring(const Vector* v, Vector* planes) {
  constexpr int kBits = 2 * kTwice;
  for (size_t w = 0; w < kWords; ++w)
    for (size_t q = 0; q < 4; ++q) {
      uint64_t low = 0, high = 0;
      if constexpr (kBits < 8) {
        low = field_of<kBits>(v, q, w);
      } else if constexpr (kBits == 12) {
        low = v[3 * (q / 2) + q % 2].word[w], high = v[3 * (q / 2) + 2].word[w] >> 4 * (q % 2) & every_byte(15);
      } else if constexpr (kBits == 16) {
        low = v[2 * q + 1].word[w], high = v[2 * q].word[w];
      } else {
        low = v[q].word[w];
        if constexpr (kBits > 8) high = field_of<kBits - 8>(v + 4, q, w);
      }
      for (int set = 3, at = 0; set >= 0; at += code_bits(kTwice, set--)) {
        const int bits = code_bits(kTwice, set), fit = std::clamp(8 - at, 0, bits);
        uint64_t code = fit ? low >> at & every_byte((1u << fit) - 1) : 0;
        if (fit < bits) code |= (high >> std::max(0, at - 8) & every_byte((1u << (bits - fit)) - 1)) << fit;
        planes[4 * size_t(set) + q].word[w] = code;
      }
    }
}

template <Format F>
void encode(Unit<F>& unit) {
  const Vector* p = unit.planes;
  Vector* v = unit.vectors;
  unit.check();
  if constexpr (F == Format::kTrits) join_trits(p, v);
  if constexpr (F == Format::k1) join<1, 0>(p, v);
  if constexpr (F == Format::k2) join<2, 0>(p, v);
  if constexpr (F == Format::k3) join_three(p, v);
  if constexpr (F == Format::k4 || F == Format::k5 || F == Format::k6) join<4, 0>(p, v);
  if constexpr (F == Format::k5) join<1, 4>(p, v + 4);
  if constexpr (F == Format::k6) join<2, 4>(p, v + 4);
  if constexpr (F == Format::k8) join<8, 0>(p, v);
  if constexpr (is_trellis(F)) join_ring<twice_bits(F)>(p, v);
}

template <Format F>
void decode(Unit<F>& unit) {
  const Vector* v = unit.vectors;
  Vector* p = unit.planes;
  if constexpr (F == Format::kTrits)
    if (!split_trits(v, p)) refuse("a ternary byte stands for no five digits");
  if constexpr (F == Format::k1) split<1, 0>(v, p);
  if constexpr (F == Format::k2) split<2, 0>(v, p);
  if constexpr (F == Format::k3) split_three(v, p);
  if constexpr (F == Format::k4 || F == Format::k5 || F == Format::k6) split<4, 0>(v, p);
  if constexpr (F == Format::k5) split<1, 4>(v + 4, p);
  if constexpr (F == Format::k6) split<2, 4>(v + 4, p);
  if constexpr (is_trellis(F)) split_ring<twice_bits(F)>(v, p);
  if constexpr (F == Format::k8) {
    split<8, 0>(v, p);
    if (unit.largest_code() == 255) refuse_code(255, 255);
  }
}

// Calls use(first column, columns, packed unit) on every unit of a tile.
template <class Byte, class Use>
void for_units(const Layout& at, Byte* packed, Use&& use) {
  const size_t bytes = unit_vectors(at.format) * kVector;
  for (size_t g = 0; g < at.groups; ++g) {
    const size_t end = std::min((g + 1) * at.group, at.columns);
    for (size_t column = g * at.group; column < end; column += at.unit, packed += bytes)
      use(column, std::min(at.unit, end - column), packed);
  }
}

// `rows` of the tile are there, at `codes`, the others are padding.
template <Format F>
void pack_tile(const Layout& at, const uint8_t* codes, size_t rows, uint8_t* packed) {
  constexpr size_t kTile = tile_rows(F);
  Unit<F> unit;
  for_units(at, packed, [&](size_t column, size_t columns, uint8_t* to) {
    if (rows == kTile && columns == unit.kColumns) {
      for (size_t r = 0; r < kTile; ++r) std::memcpy(unit.rows[r], codes + r * at.columns + column, unit.kColumns);
    } else {
      std::memset(unit.rows, 0, sizeof unit.rows);
      for (size_t r = 0; r < rows; ++r) std::memcpy(unit.rows[r], codes + r * at.columns + column, columns);
    }
    unit.rows_to_planes();
    encode(unit);
    std::memcpy(to, unit.vectors, sizeof unit.vectors);
  });
}

template <Format F>
void unpack_tile(const Layout& at, const uint8_t* packed, size_t rows, uint8_t* codes) {
  constexpr size_t kTile = tile_rows(F);
  Unit<F> unit;
  for_units(at, packed, [&](size_t column, size_t columns, const uint8_t* from) {
    std::memcpy(unit.vectors, from, sizeof unit.vectors);
    decode(unit);
    unit.planes_to_rows();
    if (rows == kTile && columns == unit.kColumns) {
      for (size_t r = 0; r < kTile; ++r) std::memcpy(codes + r * at.columns + column, unit.rows[r], unit.kColumns);
      return;
    }
    uint8_t padding = 0;
    for (size_t r = 0; r < kTile; ++r)
      for (size_t c = r < rows ? columns : 0; c < unit.kColumns; ++c) padding |= unit.rows[r][c];
    if (padding) refuse("the padding of packed codes is not 0");
    for (size_t r = 0; r < rows; ++r) std::memcpy(codes + r * at.columns + column, unit.rows[r], columns);
  });
}

void dequant_row(const uint8_t* codes, const uint8_t* zero, const uint16_t* scale, const Affine& affine,
                 size_t columns, float* out) {
  for (size_t start = 0, g = 0; start < columns; start += affine.group, ++g) {
    const size_t n = std::min(affine.group, columns - start);
    const float step = half_to_float(scale[g]);
    const float origin = zero ? float(zero[g]) : affine.offset;
    for (size_t i = start; i < start + n; ++i) out[i] = step * (float(codes[i]) - origin);
  }
}

// One ring of a trellis; the windows slide down a strip of columns.
void dequant_ring(const uint8_t* codes, const uint16_t* scale, int twice_bits, const float* values, size_t rows,
                  size_t columns, float* out) {
  constexpr size_t kTile = tile_rows(Format::kT1), kStrip = 512;
  constexpr size_t kBefore = 8;  // codes of a window at most
  uint8_t window[kStrip];
  for (size_t column = 0; column < columns; column += kStrip) {
    const size_t count = std::min(kStrip, columns - column);
    std::memset(window, 0, sizeof window);
    for (size_t step = 0; step < kBefore + kTile; ++step) {
      const size_t place = (step + kTile - kBefore) % kTile, row = place % 4 * kSet + place / 4;
      const int bits = code_bits(twice_bits, int(place % 4));
      const uint8_t* code = row < rows ? codes + row * columns + column : nullptr;
      for (size_t i = 0; i < count; ++i) window[i] = uint8_t(window[i] << bits | (code ? code[i] : 0));
      if (step < kBefore || !code) continue;
      const float factor = half_to_float(scale[row]);
      float* to = out + row * columns + column;
      for (size_t i = 0; i < count; ++i) to[i] = factor * values[window[i]];
    }
  }
}

}  // namespace

Layout layout_of(int number, size_t rows, size_t columns, size_t group) {
  if (number < 0 || number >= kFormats || is_float(Format(number))) refuse("a format that is not packed");
  const Format format = Format(number);
  if (columns < 1 || columns > kMost || rows > kMost)
    refuse(std::to_string(rows) + " rows of " + std::to_string(columns) + " columns cannot be packed");
  if (group < 1) refuse("a group of 0 columns");
  if (is_trellis(format) && group < columns) refuse("groups in a trellis");
  return Layout(format, rows, columns, group);
}

void pack(const Layout& at, const uint8_t* codes, uint8_t* packed, int threads) {
  with_format(at.format, [&](auto format) {
    constexpr Format kFormat = decltype(format)::value;
    if constexpr (!is_float(kFormat))
      parallel_rows(at.tiles, at.tile * at.columns, threads, [&](size_t first, size_t last) {
        for (size_t t = first; t < last; ++t)
          pack_tile<kFormat>(at, codes + t * at.tile * at.columns, std::min(at.tile, at.rows - t * at.tile),
                             packed + t * at.tile_bytes);
      });
  });
}

void unpack(const Layout& at, const uint8_t* packed, uint8_t* codes, int threads) {
  with_format(at.format, [&](auto format) {
    constexpr Format kFormat = decltype(format)::value;
    if constexpr (!is_float(kFormat))
      parallel_rows(at.tiles, at.tile * at.columns, threads, [&](size_t first, size_t last) {
        for (size_t t = first; t < last; ++t)
          unpack_tile<kFormat>(at, packed + t * at.tile_bytes, std::min(at.tile, at.rows - t * at.tile),
                               codes + t * at.tile * at.columns);
      });
  });
}

void dequant(const uint8_t* codes, const uint8_t* zero, const Affine& affine, size_t rows, size_t columns,
             float* out, int threads) {
  const size_t groups = (columns - 1) / affine.group + 1;
  parallel_rows(rows, 4 * columns, threads, [=](size_t first, size_t last) {
    for (size_t r = first; r < last; ++r)
      dequant_row(codes + r * columns, zero ? zero + r * groups : nullptr, affine.scale + r * groups, affine,
                  columns, out + r * columns);
  });
}

void dequant_trellis(const uint8_t* codes, const uint16_t* scale, int twice_bits, const float* values, size_t rows,
                     size_t columns, float* out, int threads) {
  constexpr size_t kTile = tile_rows(Format::kT1);
  parallel_rows((rows + kTile - 1) / kTile, 4 * kTile * columns, threads, [=](size_t first, size_t last) {
    for (size_t t = first * kTile; t < std::min(last * kTile, rows); t += kTile)
      dequant_ring(codes + t * columns, scale + t, twice_bits, values, std::min(kTile, rows - t), columns, out + t * columns);
  });
}

}  // namespace paretobit
