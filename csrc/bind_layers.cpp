// Single operations of the decoder, for tests.
#include <nanobind/stl/string.h>

#include <vector>

#include "angles.h"
#include "bind.h"
#include "cache.h"
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

// Attention of one key-value head through a cache as a session uses it (kept: its window), `step` tokens at a time; at the
// end the sequence is cut to `cut` tokens and goes on with the same again. q, out: (tokens, group · head_dim); keys, values: (tokens, head_dim).
void attend_through_cache(int bits, bool by_channel, size_t kept, bool int8, size_t window, size_t step, size_t cut,
                          const binding::Matrix<const float>& q, const binding::Halves& keys,
                          const binding::Halves& values, const binding::Matrix<float>& out, const std::string& isa) {
  const size_t count = q.shape(0), d = keys.shape(1), width = padded_head(d);
  require(d >= 1 && q.shape(1) % d == 0 && is_shape(keys, count, d) && is_shape(values, count, d) &&
              is_shape(out, count, q.shape(1)) && step >= 1 && cut <= count && window >= 1,
          "sizes do not fit");
  const Kernels& k = kernels(isa);
  const CacheShape shape({bits, by_channel, kept, {}}, 1, 1, d);
  Cache cache(shape);
  std::vector<float> scratch(attend_scratch(d));
  CodeScratch room(d);
  const auto feed = [&](size_t first, size_t last) {
    cache.reserve(last - first);
    for (size_t t = first; t < last; ++t) {
      uint16_t* to = cache.head(t / kPositions, 0, 0);
      for (size_t i = 0; i < d; ++i) {
        to[i * kPositions + t % kPositions] = keys.data()[t * d + i];
        to[kPositions * d + t % kPositions * width + i] = values.data()[t * d + i];
      }
    }
    const Cache::Range due = cache.due(last - first);
    for (size_t block = due.first; block < due.last; ++block) cache.encode(k, block, 0, 0, room);
    const size_t stride = q.shape(1), group = stride / d;
    AttendArgs args{cache.blocks(), 0, d, width, group, window, first, q.data() + first * stride, stride,
                    out.data() + first * stride, stride, scratch.data()};
    args.coded = shape.coded ? &*shape.coded : nullptr;
    args.codes = cache.codes(), args.recent = shape.recent, args.int8 = int8;
    k.attend(args, 0, (last - first) * group);
    cache.append(last - first);
  };
  for (size_t t = 0; t < count; t += step) feed(t, std::min(count, t + step));
  if (cut == count) return;
  cache.truncate(cut, k);
  for (size_t t = cut; t < count; t += step) feed(t, std::min(count, t + step));
}

}  // namespace

void define_layers(nb::module_& m) {
  const auto as_is = [](const char* name) { return nb::arg(name).noconvert(); };
  m.def("rms_norm", &rms_norm, as_is("x"), as_is("weight"), "eps"_a, as_is("out"), "isa"_a);
  m.def("gate", &gate, "gelu_tanh"_a, as_is("gates"), as_is("up"), "isa"_a);
  m.def("to_half", &to_half, as_is("values"), as_is("out"), "isa"_a);
  m.def("attend_through_cache", &attend_through_cache, "bits"_a, "by_channel"_a, "kept"_a, "int8"_a, "window"_a,
        "step"_a, "cut"_a, as_is("q"), as_is("keys"), as_is("values"), as_is("out"), "isa"_a);
  m.def("cosines_sines", &cosines_sines, as_is("angles"), as_is("out"));
}

}  // namespace paretobit
