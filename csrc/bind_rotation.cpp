// Rotations of rows of numbers.
#include <nanobind/stl/string.h>

#include "bind.h"
#include "kernels.h"
#include "threads.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace paretobit::binding;

namespace paretobit {
namespace {

void rotate_rows(size_t order, const Array<const int8_t, 1>& signs, const binding::Matrix<const int8_t>& hadamard,
                 bool inverse, const binding::Matrix<const float>& x, const binding::Matrix<float>& out,
                 const std::string& isa, int threads) {
  const size_t width = signs.size();
  const OwnedRotation rotation(width, order, {signs.data(), width}, {hadamard.data(), hadamard.size()});
  require(x.shape(1) == width && is_shape(out, x.shape(0), width), "rows do not fit the rotation");
  const Kernels& k = kernels(isa);
  const auto apply = inverse ? k.unrotate_inputs : k.rotate_inputs;
  const Rotation view = rotation.view();
  parallel_rows(x.shape(0), 8 * width, threads, [&](size_t first, size_t last) {
    for (size_t row = first; row < last; ++row) apply(view, x.data() + row * width, out.data() + row * width);
  });
}

}  // namespace

void define_rotation(nb::module_& m) {
  const auto as_is = [](const char* name) { return nb::arg(name).noconvert(); };
  m.def("rotate_rows", &rotate_rows, "order"_a, as_is("signs"), as_is("hadamard"), "inverse"_a, as_is("x"),
        as_is("out"), "isa"_a, "threads"_a, Release());
}

}  // namespace paretobit
