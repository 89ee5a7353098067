// Packing and the kernels, with any bytes. What unpacks packs again into the same bytes, what packs unpacks into the same
// codes, and every ISA gives the same products of whatever lies in memory, NaN and infinity included.
#include "kernels.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "pack.h"
#include "reader.h"

using namespace paretobit;
using namespace paretobit::test;

namespace {

const Format kPacked[] = {Format::k1,      Format::kTrits,  Format::k2,  Format::k3,      Format::k4,
                          Format::k5,      Format::k6,      Format::k8,  Format::kT1,     Format::kT1Half,
                          Format::kT2,     Format::kT2Half, Format::kT3, Format::kT3Half, Format::kT4};

void pack_and_back(Reader& in, const Layout& l) {
  Exact<uint8_t> codes(l.rows * l.columns), packed(l.tiles * l.tile_bytes), again(packed.size()), back(codes.size());
  const auto levels = [&](size_t i) { return levels_of(l.format, int(i / l.columns % l.tile / kSet)); };
  const bool from_codes = in.coin();
  try {
    if (from_codes) {
      codes.fill(in);
      if (in.coin())
        for (size_t i = 0; i < codes.size(); ++i) codes[i] = uint8_t(codes[i] % levels(i));
      pack(l, codes.data(), packed.data(), 1);
      unpack(l, packed.data(), back.data(), 1);
      require(!std::memcmp(codes.data(), back.data(), codes.size()), "packed codes come back as others");
    } else {
      packed.fill(in);
      unpack(l, packed.data(), codes.data(), 1);
      for (size_t i = 0; i < codes.size(); ++i) require(codes[i] < levels(i), "unpacked a code outside the grid");
      pack(l, codes.data(), again.data(), 1);
      require(!std::memcmp(packed.data(), again.data(), packed.size()), "unpacked bytes that no packing writes");
    }
  } catch (const std::invalid_argument&) {
  }
}

bool alike(const Exact<float>& a, const Exact<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    const bool nan = std::isnan(a[i]);
    if (nan != std::isnan(b[i]) || (!nan && std::memcmp(&a[i], &b[i], 4))) return false;
  }
  return true;
}

void multiply(Reader& in, const Layout& l) {
  const bool values = is_float(l.format) || in.coin(), stored = in.coin() && !is_trellis(l.format);
  const size_t count = in.below(6) + 1, stride = l.rows;
  Exact<uint8_t> zero(l.tiles * l.groups * zero_bytes(l.format));
  Exact<uint16_t> scale(l.tiles * l.groups * l.tile);
  Exact<uint8_t> table(kTable);
  Matrix m{l};
  m.twice_zero = int(in.byte());
  Exact<float> x(count * l.columns);
  x.fill(in);
  Exact<uint8_t> codes(is_float(l.format) ? l.rows * l.columns * float_bytes(l.format) : l.tiles * l.tile_bytes);
  scale.fill(in), zero.fill(in), codes.fill(in);
  table.fill(in);
  for (size_t i = 0; i < kTable; ++i) table[i] &= 63;  // no level above 127
  m.table = table.data();
  m.codes = codes.data(), m.scale = scale.data(), m.zero = stored ? zero.data() : nullptr;
  Exact<float> expected(count * stride), row(l.columns), expected_row(l.columns);
  const size_t step = room_for(count);
  bool first = true;
  for (const std::string& isa : available()) {
    const Kernels& k = kernels(isa);
    Exact<float> out(count * stride), spread(count * l.padded), scales(step * l.blocks);
    Exact<int8_t> quantized(step * l.token_bytes);
    Exact<int32_t> sums(step * l.blocks);
    for (size_t t = 0; t < count; ++t) {
      k.spread(l, x.data() + t * l.columns, spread.data() + t * l.padded);
      if (!is_float(l.format))
        k.quantize(l, x.data() + t * l.columns, quantized.data() + t * l.token_bytes, scales.data() + t,
                   sums.data() + t, step);
    }
    if (values) k.multiply(m, {count, spread.data(), nullptr, nullptr, nullptr}, 0, l.tiles, out.data(), stride);
    else k.multiply(m, {count, nullptr, quantized.data(), scales.data(), sums.data(), step}, 0, l.tiles, out.data(), stride);
    if (l.rows) k.row(m, l.rows - 1, row.data());
    if (first) {
      std::copy_n(out.data(), out.size(), expected.data());
      std::copy_n(row.data(), row.size(), expected_row.data());
    }
    require(alike(out, expected) && alike(row, expected_row), "ISAs differ");
    first = false;
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Reader in(data, size);
  const size_t rows = in.size(70);
  const size_t columns = in.size(90);
  const size_t own_group = in.size(90);
  const int number = in.byte() < 250 ? int(kPacked[in.below(12)]) : in.number<int32_t>();
  try {
    const bool ring = number >= 0 && number < kFormats && is_trellis(Format(number)) && in.byte() < 250;
    const size_t group = ring ? columns : own_group;
    const Layout packed = layout_of(number, rows, columns, group);
    if (rows > 100 || columns > 200) return 0;  // nobody has memory for most of these
    const bool pack = in.coin();
    if (pack) return pack_and_back(in, packed), 0;
    if (group < 16 && group < columns) return 0;
    const auto format = Format(in.byte() % 11);
    multiply(in, is_float(format) ? Layout(format, rows, columns, columns) : packed);
  } catch (const std::invalid_argument&) {
  }
  return 0;
}
