// Single operations of the decoder, for tests.
#include <nanobind/stl/string.h>

#include "angles.h"
#include "bind.h"
#include "kernels.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace paretobit::binding;

namespace paretobit {
namespace {

template <class T>
using List = Array<T, 1>;

void rms_norm(List<const float> x, List<const float> weight, float eps, List<float> out, const std::string& isa) {
  require(weight.size() == x.size() && out.size() == x.size(), "sizes differ");
  kernels(isa).rms_norm(x.data(), weight.data(), x.size(), eps, out.data());
}

void gate(bool gelu_tanh, List<float> gates, List<const float> up, const std::string& isa) {
  require(gates.size() == up.size(), "sizes differ");
  kernels(isa).gate(gelu_tanh ? Activation::kGeluTanh : Activation::kSilu, gates.data(), up.data(), up.size());
}

void to_half(List<const float> from, List<uint16_t> to, const std::string& isa) {
  require(from.size() == to.size(), "sizes differ");
  kernels(isa).to_half(from.data(), to.data(), from.size());
}

void cosines_sines(List<const double> angles, binding::Matrix<double> out) {
  require(is_shape(out, 2, angles.size()), "sizes differ");
  for (size_t i = 0; i < angles.size(); ++i) {
    require(angles.data()[i] >= 0 && angles.data()[i] <= 0x1p50, "an angle outside 0...2^50");
    cosine_sine(angles.data()[i], out.data()[i], out.data()[angles.size() + i]);
  }
}

}  // namespace

void define_layers(nb::module_& m) {
  const auto as_is = [](const char* name) { return nb::arg(name).noconvert(); };
  m.def("rms_norm", &rms_norm, as_is("x"), as_is("weight"), "eps"_a, as_is("out"), "isa"_a);
  m.def("gate", &gate, "gelu_tanh"_a, as_is("gates"), as_is("up"), "isa"_a);
  m.def("to_half", &to_half, as_is("values"), as_is("out"), "isa"_a);
  m.def("cosines_sines", &cosines_sines, as_is("angles"), as_is("out"));
}

}  // namespace paretobit
