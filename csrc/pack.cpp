#include "pack.h"

#include <array>
#include <stdexcept>
#include <string>
#include <vector>

#include "half.h"
#include "threads.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "paretobit packs with little-endian 64-bit loads"
#endif

namespace paretobit {
namespace {

constexpr size_t kMostColumns = size_t(1) << 40;  // columns * 8 bits stays far from overflow

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

// The low `bits` of each of eight equal fields, moved apart so that each field starts a byte; three halvings.
template <int kBits>
inline uint64_t spread(uint64_t x) {
  constexpr uint64_t kHalf = (uint64_t(1) << 4 * kBits) - 1;
  constexpr uint64_t kQuarter = ((uint64_t(1) << 2 * kBits) - 1) * 0x0000000100000001u;
  constexpr uint64_t kCode = ((uint64_t(1) << kBits) - 1) * 0x0001000100010001u;
  x = (x & kHalf) | (x >> 4 * kBits & kHalf) << 32;
  x = (x & kQuarter) | (x >> 2 * kBits & kQuarter) << 16;
  return (x & kCode) | (x >> kBits & kCode) << 8;
}

// The inverse of spread: eight bytes below 2^bits into the low 8 * bits.
template <int kBits>
inline uint64_t gather(uint64_t x) {
  constexpr uint64_t kCode = ((uint64_t(1) << kBits) - 1) * 0x0001000100010001u;
  constexpr uint64_t kQuarter = ((uint64_t(1) << 2 * kBits) - 1) * 0x0000000100000001u;
  constexpr uint64_t kHalf = (uint64_t(1) << 4 * kBits) - 1;
  x = (x & kCode) | (x >> 8 & kCode) << kBits;
  x = (x & kQuarter) | (x >> 16 & kQuarter) << 2 * kBits;
  return (x & kHalf) | (x >> 32 & kHalf) << 4 * kBits;
}

template <int kBits>
void pack_bits(const uint8_t* codes, size_t n, uint8_t* packed) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8, packed += kBits) {
    uint64_t bytes;
    std::memcpy(&bytes, codes + i, 8);
    const uint64_t word = gather<kBits>(bytes);
    std::memcpy(packed, &word, kBits);
  }
  if (i == n) return;
  uint64_t bytes = 0;
  std::memcpy(&bytes, codes + i, n - i);
  const uint64_t word = gather<kBits>(bytes);
  std::memcpy(packed, &word, ((n - i) * kBits + 7) / 8);
}

template <int kBits>
void unpack_bits(const uint8_t* packed, size_t n, uint8_t* codes) {
  const size_t bytes = (n * kBits + 7) / 8;
  size_t i = 0, at = 0;
  for (; i + 8 <= n && at + 8 <= bytes; i += 8, at += kBits) {
    uint64_t word;  // a whole load, of which the low 8 * kBits are used
    std::memcpy(&word, packed + at, 8);
    word = spread<kBits>(word);
    std::memcpy(codes + i, &word, 8);
  }
  for (; i < n; i += 8, at += kBits) {
    uint64_t word = 0;
    std::memcpy(&word, packed + at, std::min<size_t>(kBits, bytes - at));
    word = spread<kBits>(word);
    std::memcpy(codes + i, &word, std::min<size_t>(8, n - i));
  }
  const int used = int((n * kBits - 1) % 8) + 1;
  if (packed[bytes - 1] >> used) refuse("a packed row does not end in zero bits");
}

void pack_trits(const uint8_t* codes, size_t n, uint8_t* packed) {
  size_t i = 0;
  for (; i + 5 <= n; i += 5)
    *packed++ =
        uint8_t(codes[i] + 3 * codes[i + 1] + 9 * codes[i + 2] + 27 * codes[i + 3] + 81 * codes[i + 4]);
  int byte = 0;
  for (size_t last = n; last > i; --last) byte = 3 * byte + codes[last - 1];
  if (i < n) *packed = uint8_t(byte);
}

constexpr uint64_t kNotTrits = uint64_t(1) << 63;

// Byte -> its five codes in the low five bytes; bytes of 243 and more carry a mark in the highest bit.
constexpr std::array<uint64_t, 256> trit_table() {
  std::array<uint64_t, 256> table{};
  for (int byte = 0; byte < 256; ++byte) {
    int rest = byte;
    for (int i = 0; i < 5; ++i, rest /= 3) table[size_t(byte)] |= uint64_t(rest % 3) << 8 * i;
    if (byte >= 243) table[size_t(byte)] = kNotTrits;
  }
  return table;
}
constexpr std::array<uint64_t, 256> kTrits = trit_table();

void unpack_trits(const uint8_t* packed, size_t n, uint8_t* codes) {
  const size_t bytes = (n + 4) / 5;
  uint64_t marks = 0;
  size_t i = 0, at = 0;
  for (; i + 8 <= n; i += 5, ++at) {  // stores eight bytes; the next store covers the three too many
    const uint64_t five = kTrits[packed[at]];
    marks |= five;
    std::memcpy(codes + i, &five, 8);
  }
  for (; at < bytes; i += 5, ++at) {
    const uint64_t five = kTrits[packed[at]];
    marks |= five;
    std::memcpy(codes + i, &five, std::min<size_t>(5, n - i));
    if (n - i < 5 && five >> 8 * (n - i)) marks |= kNotTrits;
  }
  if (marks & kNotTrits) refuse("a ternary byte is above 242, or a packed row does not end in zeros");
}

void check_codes(const uint8_t* codes, size_t n, int levels) {
  uint8_t most = 0;
  for (size_t i = 0; i < n; ++i) most = std::max(most, codes[i]);
  if (most >= levels)
    refuse("code " + std::to_string(most) + " on a grid of " + std::to_string(levels) + " levels");
}

void pack_row(const uint8_t* codes, size_t n, int levels, uint8_t* packed) {
  check_codes(codes, n, levels);
  switch (code_bits(levels)) {
    case 0: return pack_trits(codes, n, packed);
    case 1: return pack_bits<1>(codes, n, packed);
    case 2: return pack_bits<2>(codes, n, packed);
    case 3: return pack_bits<3>(codes, n, packed);
    case 4: return pack_bits<4>(codes, n, packed);
    case 5: return pack_bits<5>(codes, n, packed);
    case 6: return pack_bits<6>(codes, n, packed);
    default: std::memcpy(packed, codes, n);
  }
}

void unpack_row(const uint8_t* packed, size_t n, int levels, uint8_t* codes) {
  switch (code_bits(levels)) {
    case 0: return unpack_trits(packed, n, codes);
    case 1: return unpack_bits<1>(packed, n, codes);
    case 2: return unpack_bits<2>(packed, n, codes);
    case 3: return unpack_bits<3>(packed, n, codes);
    case 4: return unpack_bits<4>(packed, n, codes);
    case 5: return unpack_bits<5>(packed, n, codes);
    case 6: return unpack_bits<6>(packed, n, codes);
    default: std::memcpy(codes, packed, n);
  }
  check_codes(codes, n, levels);  // a byte can be a code too many
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

}  // namespace

int code_bits(int levels) {
  switch (levels) {
    case 2: return 1;
    case 3: return 0;
    case 4: return 2;
    case 8: return 3;
    case 16: return 4;
    case 32: return 5;
    case 64: return 6;
    case 255: return 8;
    default: return -1;
  }
}

size_t row_bytes(int levels, size_t columns) {
  const int bits = code_bits(levels);
  if (bits < 0) refuse(std::to_string(levels) + " levels have no packing");
  if (columns < 1 || columns > kMostColumns) refuse(std::to_string(columns) + " columns cannot be packed");
  return bits == 0 ? (columns + 4) / 5 : (columns * size_t(bits) + 7) / 8;
}

void pack(const uint8_t* codes, size_t rows, size_t columns, int levels, uint8_t* packed, int threads) {
  const size_t bytes = row_bytes(levels, columns);
  parallel_rows(rows, columns, threads, [=](size_t first, size_t last) {
    for (size_t r = first; r < last; ++r) pack_row(codes + r * columns, columns, levels, packed + r * bytes);
  });
}

void unpack(const uint8_t* packed, size_t rows, size_t columns, int levels, uint8_t* codes, int threads) {
  const size_t bytes = row_bytes(levels, columns);
  parallel_rows(rows, columns, threads, [=](size_t first, size_t last) {
    for (size_t r = first; r < last; ++r)
      unpack_row(packed + r * bytes, columns, levels, codes + r * columns);
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

void dequantize(const uint8_t* packed, const uint8_t* zero, const Affine& affine, int levels, size_t rows,
                size_t columns, float* out, int threads) {
  const size_t groups = (columns - 1) / affine.group + 1;
  const size_t bytes = row_bytes(levels, columns), zero_bytes = row_bytes(levels, groups);
  parallel_rows(rows, 4 * columns, threads, [=](size_t first, size_t last) {
    std::vector<uint8_t> codes(columns), origin(groups);
    for (size_t r = first; r < last; ++r) {
      unpack_row(packed + r * bytes, columns, levels, codes.data());
      if (zero) unpack_row(zero + r * zero_bytes, groups, levels, origin.data());
      const uint16_t* scale = affine.scale + r * groups;
      for (size_t g = 0; g < groups; ++g)
        if (!half_is_finite(scale[g])) refuse("a scale is not finite");
      dequant_row(codes.data(), zero ? origin.data() : nullptr, scale, affine, columns, out + r * columns);
    }
  });
}

}  // namespace paretobit
