// The speeds of memory and of int8 products, measured. That of packed matrices stands in bind_multiply.cpp.
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bind.h"
#include "probe.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace paretobit::binding;

namespace paretobit {
namespace {

std::vector<double> read(size_t bytes, size_t threads, double limit, const std::string& isa) {
  check_effort(threads, limit);
  require(bytes / threads >= 4096, "less than a page to read for each thread");
  return read_seconds(kernels(isa), bytes, threads, limit);
}

std::vector<double> product(size_t threads, double limit, const std::string& isa) {
  check_effort(threads, limit);
  return product_seconds(kernels(isa), threads, limit);
}

void products(Array<const uint8_t, 3> codes, Array<const int8_t, 2> activations, Array<const int32_t, 1> sums,
              Array<int32_t, 2> out, const std::string& isa) {
  const size_t quads = codes.shape(0), rows = 16 * kProductSets;
  require(codes.shape(1) == rows && codes.shape(2) == 4, "codes are not (quads, rows, 4)");
  require(is_shape(activations, kProductTokens, 4 * quads), "not the activations of these codes");
  require(sums.shape(0) == kProductTokens && is_shape(out, kProductTokens, rows), "not the sums or outputs of these");
  kernels(isa).products({codes.data(), activations.data(), sums.data(), quads, out.data()});
}

uint64_t read_words(Array<const uint8_t, 1> bytes, const std::string& isa) {
  require(bytes.shape(0) % 512 == 0, "not a whole number of 512 bytes");
  return kernels(isa).read_words(bytes.data(), bytes.shape(0));
}

}  // namespace

void define_probe(nb::module_& m) {
  m.def("read_words", &read_words, nb::arg("bytes").noconvert(), "isa"_a, Release());
  m.def("products", &products, nb::arg("codes").noconvert(), nb::arg("activations").noconvert(),
        nb::arg("sums").noconvert(), nb::arg("out").noconvert(), "isa"_a, Release());
  m.attr("PRODUCTS") = kProducts;
  m.def("product_seconds", &product, "threads"_a, "limit"_a, "isa"_a, Release());
  m.def("read_seconds", &read, "bytes"_a, "threads"_a, "limit"_a, "isa"_a, Release());
}

}  // namespace paretobit
