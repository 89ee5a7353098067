// The speed measurements as Python sees them. Sizes are checked here.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <stdexcept>

#include "probe.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace paretobit {
namespace {

template <class T>
using Buffer = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

constexpr int kMostThreads = 4096;
constexpr double kMostSeconds = 3600;

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

void check_effort(int threads, double limit) {
  require(threads >= 1 && threads <= kMostThreads, "threads outside 1...4096");
  require(limit >= 0 && limit <= kMostSeconds, "a limit outside 0...3600 seconds");
}

Format format_of(int levels) {
  switch (levels) {
    case 0: return Format::kBF16;
    case 2: return Format::k1;
    case 3: return Format::kTrits;
    case 4: return Format::k2;
    case 8: return Format::k3;
    case 16: return Format::k4;
    case 32: return Format::k5;
    case 64: return Format::k6;
    case 255: return Format::k8;
    default: throw std::invalid_argument("no grid has so many levels");
  }
}

std::vector<double> read(const std::string& isa, size_t bytes, int threads, double limit) {
  check_effort(threads, limit);
  return read_seconds(kernels(isa), bytes, threads, limit);
}

// One token's product with a matrix of any codes whatever: how long it takes does not depend on them.
std::vector<double> multiply(const std::string& isa, int levels, size_t rows, size_t columns, size_t group,
                             Buffer<uint8_t> codes, Buffer<uint16_t> scale, std::optional<Buffer<uint8_t>> zero,
                             int threads, double limit) {
  constexpr size_t kMost = size_t(1) << 24;
  check_effort(threads, limit);
  require(rows >= 1 && rows <= kMost && columns >= 1 && columns <= kMost && group >= 1, "rows or columns out of range");
  const Format format = format_of(levels);
  const Layout layout(format, rows, columns, group);
  const size_t bytes = is_float(format) ? rows * columns * float_bytes(format) : layout.tiles * layout.tile_bytes;
  require(codes.size() >= bytes, "too few codes");
  require(is_float(format) || scale.size() >= layout.tiles * layout.groups * kTile, "too few scales");
  require(!zero || zero->size() >= layout.tiles * layout.groups * zero_bytes(format), "too few zero points");

  Matrix matrix{layout};
  matrix.codes = codes.data();
  matrix.scale = scale.data();
  matrix.zero = zero ? zero->data() : nullptr;
  matrix.twice_zero = levels - 1;

  const Kernels& table = kernels(isa);
  std::vector<float> x(columns), values, out(rows);
  for (size_t i = 0; i < columns; ++i) x[i] = std::sin(float(i));
  std::vector<int8_t> quantized(layout.padded);
  std::vector<float> scales(layout.blocks);
  std::vector<int32_t> sums(layout.blocks);
  Inputs inputs;
  inputs.count = 1;
  if (is_float(format)) {
    inputs.values = x.data();
  } else {
    table.quantize(layout, x.data(), quantized.data(), scales.data(), sums.data());
    inputs.codes = quantized.data(), inputs.scales = scales.data(), inputs.sums = sums.data();
  }
  return multiply_seconds(table, matrix, inputs, out.data(), threads, limit);
}

}  // namespace

void define_probe(nb::module_& m) {
  const auto as_is = [](const char* name) { return nb::arg(name).noconvert(); };
  using Release = nb::call_guard<nb::gil_scoped_release>;
  m.def("read_seconds", &read, "isa"_a, "bytes"_a, "threads"_a, "limit"_a, Release());
  m.def("multiply_seconds", &multiply, "isa"_a, "levels"_a, "rows"_a, "columns"_a, "group"_a, as_is("codes"),
        as_is("scale"), as_is("zero").none(), "threads"_a, "limit"_a, Release());
}

}  // namespace paretobit
