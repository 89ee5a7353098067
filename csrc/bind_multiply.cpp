// The matrix kernels by themselves, for tests and measurements; the session calls them without Python.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <utility>
#include <vector>

#include "bind.h"
#include "kernels.h"
#include "probe.h"
#include "threads.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace paretobit::binding;

namespace paretobit {
namespace {

constexpr size_t kMostSize = size_t(1) << 24;  // rows, columns: no product of them overflows

template <class T>
using Bytes = Array<T, 1>;

// `codes`, `scale` and `zero` as a file holds them, flat; the table of a trellis.
struct Packed {
  Bytes<const uint8_t> codes;
  std::optional<Bytes<const uint16_t>> scale;
  std::optional<Bytes<const uint8_t>> zero, table;
};

paretobit::Matrix checked(int format, size_t rows, size_t columns, size_t group, int twice_zero, const Packed& packed) {
  require(format >= 0 && format < kFormats, "unknown format");
  require(rows > 0 && rows <= kMostSize && columns > 0 && columns <= kMostSize && group > 0, "impossible shape");
  require(twice_zero >= 0 && twice_zero <= 255, "zero point outside 0...127.5");
  const Format f = Format(format);
  paretobit::Matrix m{Layout(f, rows, columns, group), packed.codes.data(), nullptr, nullptr, twice_zero};
  const Layout& l = m.layout;
  const size_t bytes = is_float(f) ? rows * columns * float_bytes(f) : l.tiles * l.tile_bytes;
  require(packed.table.has_value() == is_trellis(f), "tables are given exactly with trellises");
  require(packed.codes.shape(0) == bytes, "codes of the wrong size");
  require(packed.scale.has_value() != is_float(f), "scales are given exactly with codes");
  if (is_float(f)) return m;
  require(packed.scale->shape(0) == l.tiles * l.groups * l.tile, "scales of the wrong size");
  m.scale = packed.scale->data();
  if (packed.table) {
    require(group >= columns && !packed.zero, "groups or zero points of a trellis");
    m.table = packed.table->data();
    require(packed.table->shape(0) == kTable && is_table(m.table), "a table of the wrong size, or with levels above 127");
  }
  if (packed.zero) {
    require(packed.zero->shape(0) == l.tiles * l.groups * zero_bytes(f), "zero points of the wrong size");
    m.zero = packed.zero->data();
  }
  return m;
}

// Activations x (count, columns), as the kernels take them.
struct Activations {
  std::vector<float> values, scales;
  std::vector<int8_t> codes;
  std::vector<int32_t> sums;
  Inputs inputs;

  Activations(const Kernels& k, const Layout& l, const float* x, size_t count, bool fp32) {
    inputs.count = count;
    if (fp32 || is_float(l.format)) {
      values.resize(count * l.padded);
      for (size_t n = 0; n < count; ++n) k.spread(l, x + n * l.columns, values.data() + n * l.padded);
      inputs.values = values.data();
      return;
    }
    const size_t step = room_for(count);
    codes.resize(step * l.token_bytes), scales.resize(step * l.blocks), sums.resize(step * l.blocks);
    for (size_t n = 0; n < count; ++n)
      k.quantize(l, x + n * l.columns, codes.data() + n * l.token_bytes, scales.data() + n, sums.data() + n, step);
    inputs.codes = codes.data(), inputs.scales = scales.data(), inputs.sums = sums.data(), inputs.step = step;
  }
};

void multiply(int format, size_t columns, size_t group, int twice_zero, Bytes<const uint8_t> codes,
              std::optional<Bytes<const uint16_t>> scale, std::optional<Bytes<const uint8_t>> zero,
              binding::Matrix<const float> x, binding::Matrix<float> out, bool fp32, const std::string& isa, int threads,
              std::optional<Bytes<const uint8_t>> table) {
  const size_t rows = out.shape(1), count = x.shape(0);
  const paretobit::Matrix m = checked(format, rows, columns, group, twice_zero, {codes, scale, zero, table});
  require(x.shape(1) == columns && out.shape(0) == count, "activations do not fit the matrix");
  const Kernels& k = kernels(isa);
  const Activations in(k, m.layout, x.data(), count, fp32);
  parallel_rows(m.layout.tiles, m.layout.tile_bytes * (count + 1), threads,
                [&](size_t first, size_t last) { k.multiply(m, in.inputs, first, last, out.data(), rows); });
}

// How long a product with `count` activations takes. It does not depend on their values, nor on the codes.
std::vector<double> time_multiply(int format, std::pair<size_t, size_t> shape, size_t group, int twice_zero,
                                  Bytes<const uint8_t> codes, std::optional<Bytes<const uint16_t>> scale,
                                  std::optional<Bytes<const uint8_t>> zero, size_t count, size_t threads, double limit,
                                  const std::string& isa, std::optional<Bytes<const uint8_t>> table) {
  check_effort(threads, limit);
  require(count >= 1 && count <= 4096, "1 to 4096 activations");
  const auto [rows, columns] = shape;
  const paretobit::Matrix m = checked(format, rows, columns, group, twice_zero, {codes, scale, zero, table});
  const Kernels& k = kernels(isa);
  std::vector<float> x(count * columns), out(count * rows);
  for (size_t i = 0; i < x.size(); ++i) x[i] = float(i % 255) - 127;
  const Activations in(k, m.layout, x.data(), count, false);
  return multiply_seconds(k, m, in.inputs, out.data(), threads, limit);
}

void row(int format, size_t rows, size_t group, int twice_zero, Bytes<const uint8_t> codes,
         std::optional<Bytes<const uint16_t>> scale, std::optional<Bytes<const uint8_t>> zero, size_t index,
         Bytes<float> out, const std::string& isa, std::optional<Bytes<const uint8_t>> table) {
  const paretobit::Matrix m = checked(format, rows, out.shape(0), group, twice_zero, {codes, scale, zero, table});
  require(index < rows, "row outside the matrix");
  kernels(isa).row(m, index, out.data());
}

void quantize(int format, size_t group, Bytes<const float> x, Bytes<int8_t> codes, Bytes<float> scales,
              Bytes<int32_t> sums, const std::string& isa) {
  require(format >= 0 && format < kFormats && !is_float(Format(format)), "unknown format");
  require(x.shape(0) > 0 && x.shape(0) <= kMostSize && group > 0, "impossible shape");
  const Layout l(Format(format), 1, x.shape(0), group);
  require(codes.shape(0) == l.padded && scales.shape(0) == l.blocks && sums.shape(0) == l.blocks, "outputs of the wrong size");
  kernels(isa).quantize(l, x.data(), codes.data(), scales.data(), sums.data(), 1);
}

}  // namespace

void define_multiply(nb::module_& m) {
  const auto as_is = [](const char* name) { return nb::arg(name).noconvert(); };
  m.def("multiply", &multiply, "format"_a, "columns"_a, "group"_a, "twice_zero"_a, as_is("codes"), as_is("scale").none(),
        as_is("zero").none(), as_is("x"), as_is("out"), "fp32"_a, "isa"_a, "threads"_a, as_is("table").none() = nb::none(), Release());
  m.def("multiply_seconds", &time_multiply, "format"_a, "shape"_a, "group"_a, "twice_zero"_a, as_is("codes"),
        as_is("scale").none(), as_is("zero").none(), "count"_a, "threads"_a, "limit"_a, "isa"_a, as_is("table").none() = nb::none(), Release());
  m.def("row", &row, "format"_a, "rows"_a, "group"_a, "twice_zero"_a, as_is("codes"), as_is("scale").none(),
        as_is("zero").none(), "index"_a, as_is("out"), "isa"_a, as_is("table").none() = nb::none(), Release());
  m.def("quantize", &quantize, "format"_a, "group"_a, as_is("x"), as_is("codes"), as_is("scales"), as_is("sums"), "isa"_a,
        Release());
}

}  // namespace paretobit
