// The speed of memory, measured. That of the products stands beside them, in bind_multiply.cpp.
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

uint64_t read_words(Array<const uint8_t, 1> bytes, const std::string& isa) {
  require(bytes.shape(0) % 512 == 0, "not a whole number of 512 bytes");
  return kernels(isa).read_words(bytes.data(), bytes.shape(0));
}

}  // namespace

void define_probe(nb::module_& m) {
  m.def("read_words", &read_words, nb::arg("bytes").noconvert(), "isa"_a, Release());
  m.def("read_seconds", &read, "bytes"_a, "threads"_a, "limit"_a, "isa"_a, Release());
}

}  // namespace paretobit
