// The search for a trellis's codes.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>

#include <cmath>
#include <optional>

#include "bind.h"
#include "kernels.h"
#include "threads.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace paretobit::binding;

namespace paretobit {
namespace {

template <class T>
using Line = Array<T, 1>;

void encode(binding::Matrix<const float> rest, size_t start, size_t count, std::optional<binding::Matrix<const float>> upper,
            std::optional<binding::Matrix<const float>> pull, Line<const float> scale, Line<const float> weight,
            Line<const uint8_t> table, int twice_bits, binding::Matrix<uint8_t> codes,
            std::optional<binding::Matrix<float>> errors, std::optional<binding::Matrix<float>> moved,
            const std::string& isa, int threads) {
  const size_t rows = rest.shape(0), width = rest.shape(1);
  require(twice_bits >= 2 && twice_bits <= 8, "a trellis has 1 to 4 bits");
  require(count > 0 && start <= width && count <= width - start, "the block lies outside the matrix");
  require(count <= kMostTrellisBlock, "a block of more than 128 columns");
  require(!upper || is_shape(*upper, count, count), "factors do not fit the block");
  require(!pull || (upper && is_shape(*pull, count, count)), "factors do not fit the block");
  require(scale.shape(0) == rows && weight.shape(0) == rows, "scales or weights do not fit the rows");
  for (size_t i = 0; i < rows; ++i) {
    require(std::isfinite(scale.data()[i]) && scale.data()[i] >= 0, "scales are finite and not negative");
    require(weight.data()[i] >= 0 && weight.data()[i] <= 1e20f, "weights lie in 0...1e20");
  }
  require(table.shape(0) == 32, "a table has 32 entries");
  for (size_t i = 0; i < 16; ++i)
    for (size_t j = 16; j < 32; ++j) require(table.data()[i] + table.data()[j] <= 127, "levels end at 127");
  require(is_shape(codes, rows, width), "codes do not fit the matrix");
  require(errors.has_value() == upper.has_value() && (!errors || is_shape(*errors, rows, count)), "errors do not fit");
  require(moved.has_value() == pull.has_value() && (!moved || is_shape(*moved, rows, count)),
          "moved columns are given exactly with pull");
  const TrellisArgs args{rest.data(),
                         rows,
                         width,
                         start,
                         count,
                         upper ? upper->data() : nullptr,
                         pull ? pull->data() : nullptr,
                         scale.data(),
                         weight.data(),
                         table.data(),
                         twice_bits,
                         codes.data(),
                         errors ? errors->data() : nullptr,
                         moved ? moved->data() : nullptr};
  const Kernels& k = kernels(isa);
  constexpr size_t kCost = 2048;  // bytes that could be touched in the time of a weight
  parallel_rows((rows + kTrellisTile - 1) / kTrellisTile, kCost * kTrellisTile * count, threads,
                [&](size_t first, size_t last) { k.trellis(args, first, last); });
}

}  // namespace

void define_trellis(nb::module_& m) {
  const auto as_is = [](const char* name) { return nb::arg(name).noconvert(); };
  m.def("trellis", &encode, as_is("rest"), "start"_a, "count"_a, as_is("upper").none(), as_is("pull").none(),
        as_is("scale"), as_is("weight"), as_is("table"), "twice_bits"_a, as_is("codes"), as_is("errors").none(),
        as_is("moved").none(), "isa"_a, "threads"_a, Release());
}

}  // namespace paretobit
