// The sampler for Python. Ranges and sizes are checked here, and in words in paretobit/runtime/sampler.py.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/vector.h>

#include <cmath>

#include "bind.h"
#include "sampler.h"

namespace paretobit {
namespace {

using namespace binding;
using namespace nb::literals;

template <class T>
using Vector = Array<T, 1>;

constexpr double kMost = 1e3;  // of a penalty

Sampler* make(double temperature, size_t top_k, double top_p, double min_p, double repetition,
              double presence, double frequency, std::vector<std::pair<uint32_t, double>> bias,
              uint64_t seed) {
  require(temperature >= 0 && std::isfinite(temperature), "temperature out of range");
  require(top_p > 0 && top_p <= 1, "top_p out of range");
  require(min_p >= 0 && min_p <= 1, "min_p out of range");
  require(repetition > 0 && repetition <= kMost, "repetition penalty out of range");
  require(std::abs(presence) <= kMost && std::abs(frequency) <= kMost, "penalty out of range");
  for (const auto& entry : bias) require(entry.second < HUGE_VAL, "bias is not a number");
  return new Sampler(
      {temperature, top_k, top_p, min_p, repetition, presence, frequency, std::move(bias), seed});
}

void start(Sampler& self, Vector<const int64_t> prompt) {
  for (size_t i = 0; i < prompt.shape(0); ++i)
    require(prompt.data()[i] >= 0 && prompt.data()[i] <= INT32_MAX, "a token out of range");
  self.start(prompt.data(), prompt.shape(0));
}

void check(const Vector<const float>& logits) {
  require(logits.shape(0) > 0 && logits.shape(0) <= Sampler::kMostTokens,
          "the vocabulary is empty or too large");
}

size_t sample(Sampler& self, Vector<const float> logits) {
  check(logits);
  return self.sample(logits.data(), logits.shape(0));
}

void distribution(Sampler& self, Vector<const float> logits, Vector<double> out) {
  check(logits);
  require(out.shape(0) == logits.shape(0), "logits and output differ in shape");
  self.distribution(logits.data(), logits.shape(0), out.data());
}

}  // namespace

void define_sampler(nb::module_& m) {
  nb::class_<Sampler>(m, "Sampler")
      .def(nb::new_(&make), "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "repetition"_a, "presence"_a,
           "frequency"_a, "bias"_a, "seed"_a)
      .def("start", &start, nb::arg("prompt").noconvert(), Release())
      .def("sample", &sample, nb::arg("logits").noconvert(), Release())
      .def("distribution", &distribution, nb::arg("logits").noconvert(), nb::arg("out").noconvert(),
           Release());
}

}  // namespace paretobit
