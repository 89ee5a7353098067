// What training computes: fake quantization of matrices, and the loss of distillation.
#include <nanobind/stl/string.h>

#include <vector>

#include "bind.h"
#include "kernels.h"
#include "threads.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace paretobit::binding;

namespace paretobit {
namespace {

FakeArgs checked(const binding::Matrix<const float>& w, const binding::Matrix<const float>& scale, size_t group,
                 float lowest, float highest, const binding::Matrix<float>& out) {
  const size_t rows = w.shape(0), columns = w.shape(1);
  require(is_shape(scale, rows, groups_of(columns, group)), "scales do not fit the groups");
  require(is_shape(out, rows, columns), "the output differs in shape");
  require(lowest < highest && lowest >= -255 && highest <= 255, "levels outside -255...255");
  return {w.data(), scale.data(), columns, group, lowest, highest, out.data()};
}

void fake(const binding::Matrix<const float>& w, const binding::Matrix<const float>& scale, size_t group, float lowest,
          float highest, const binding::Matrix<float>& out, const std::string& isa, int threads) {
  const FakeArgs args = checked(w, scale, group, lowest, highest, out);
  const Kernels& k = kernels(isa);
  parallel_rows(w.shape(0), 8 * args.columns, threads, [&](size_t first, size_t last) { k.fake(args, first, last); });
}

void fake_gradients(const binding::Matrix<const float>& w, const binding::Matrix<const float>& scale, size_t group,
                    float lowest, float highest, const binding::Matrix<const float>& upstream, float low, float high,
                    float under, float over, float by_level, float by_step, const binding::Matrix<float>& to_w,
                    const binding::Matrix<float>& to_scale, const std::string& isa, int threads) {
  const FakeArgs forward = checked(w, scale, group, lowest, highest, to_w);
  require(is_shape(upstream, w.shape(0), w.shape(1)), "the gradient differs in shape");
  require(is_shape(to_scale, scale.shape(0), scale.shape(1)), "the scales' gradient does not fit the groups");
  const FakeGradientArgs args{forward, upstream.data(), low, high, under, over, by_level, by_step, to_scale.data()};
  const Kernels& k = kernels(isa);
  parallel_rows(w.shape(0), 12 * forward.columns, threads,
                [&](size_t first, size_t last) { k.fake_gradients(args, first, last); });
}

// T: float, or uint16_t for bf16.
template <class T>
void divergence(const binding::Matrix<const T>& wanted, const binding::Matrix<const T>& found, float factor,
                const Array<float, 1>& loss, const binding::Matrix<T>& gradient, const std::string& isa, int threads) {
  const size_t rows = wanted.shape(0), columns = wanted.shape(1);
  require(columns > 0, "logits of no vocabulary");
  require(is_shape(found, rows, columns) && is_shape(gradient, rows, columns), "logits or gradient differ in shape");
  require(loss.shape(0) == rows, "losses do not fit the rows");
  const DivergenceArgs args{wanted.data(), found.data(), columns, sizeof(T) == 2, factor, loss.data(), gradient.data()};
  const Kernels& k = kernels(isa);
  parallel_rows(rows, 64 * columns, threads, [&](size_t first, size_t last) {
    std::vector<float> scratch(divergence_scratch(columns));
    k.divergence(args, scratch.data(), first, last);
  });
}

template <class T>
void define_divergence(nb::module_& m) {
  const auto as_is = [](const char* name) { return nb::arg(name).noconvert(); };
  m.def("divergence", &divergence<T>, as_is("wanted"), as_is("found"), "factor"_a, as_is("loss"), as_is("gradient"),
        "isa"_a, "threads"_a, Release());
}

}  // namespace

void define_training(nb::module_& m) {
  const auto as_is = [](const char* name) { return nb::arg(name).noconvert(); };
  m.def("fake", &fake, as_is("w"), as_is("scale"), "group"_a, "lowest"_a, "highest"_a, as_is("out"), "isa"_a,
        "threads"_a, Release());
  m.def("fake_gradients", &fake_gradients, as_is("w"), as_is("scale"), "group"_a, "lowest"_a, "highest"_a,
        as_is("upstream"), "low"_a, "high"_a, "under"_a, "over"_a, "by_level"_a, "by_step"_a, as_is("to_w"),
        as_is("to_scale"), "isa"_a, "threads"_a, Release());
  define_divergence<float>(m);
  define_divergence<uint16_t>(m);
}

}  // namespace paretobit
