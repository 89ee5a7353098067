// The model and its sessions. Models keep the arrays that their matrices lie in, sessions keep their model.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "bind.h"
#include "model.h"
#include "session.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace paretobit::binding;

namespace paretobit {
namespace {

template <class T>
using Flat = nb::ndarray<const T, nb::c_contig, nb::device::cpu>;  // of any shape

struct Weights {
  Model model;
  std::vector<nb::ndarray<>> kept;

  explicit Weights(const Config& config) : model(config) {}

  template <class T>
  Span<T> keep(const Flat<T>& array) {
    kept.emplace_back(array);
    return {array.data(), array.size()};
  }
};

void add_matrix(Weights& self, const std::string& role, size_t layer, int format,
                std::pair<size_t, size_t> shape, size_t group, int twice_zero, const Flat<uint8_t>& codes,
                const std::optional<Flat<uint16_t>>& scale, const std::optional<Flat<uint8_t>>& zero,
                const std::optional<Flat<uint8_t>>& table) {
  require(format >= 0 && format < kFormats, "unknown format");
  Stored stored{Format(format), shape.first, shape.second, group, twice_zero, self.keep(codes), {}, {}};
  if (scale) stored.scale = self.keep(*scale);
  if (zero) stored.zero = self.keep(*zero);
  if (table) stored.table = self.keep(*table);
  self.model.add_matrix(role, layer, stored);
}

void add_vector(Weights& self, const std::string& role, size_t layer, const Array<const float, 1>& values) {
  self.model.add_vector(role, layer, {values.data(), values.size()});
}

void add_rotation(Weights& self, const std::string& tap, size_t layer, size_t order, const Array<const int8_t, 1>& signs,
                  const binding::Matrix<const int8_t>& hadamard) {
  const Span<int8_t> every{signs.data(), signs.size()}, dense{hadamard.data(), hadamard.size()};
  self.model.add_rotation(tap, layer, OwnedRotation(signs.size(), order, every, dense));
}

// bits, by_channel, window: of the key-value cache; its rotation's order, signs and dense factor, or none.
void make_session(Session* self, const Weights& weights, const std::string& isa, size_t threads, bool int8,
                  size_t context, int bits, bool by_channel, size_t window, size_t order,
                  const std::optional<Array<const int8_t, 1>>& signs,
                  const std::optional<binding::Matrix<const int8_t>>& hadamard) {
  CacheScheme cache{bits, by_channel, window, {}};
  if (signs && hadamard)
    cache.rotation.emplace(signs->size(), order, Span<int8_t>{signs->data(), signs->size()},
                           Span<int8_t>{hadamard->data(), hadamard->size()});
  new (self) Session(weights.model, kernels(isa), threads, int8, context, cache);
}

using Feeds = std::vector<std::tuple<size_t, Array<const int32_t, 1>, size_t>>;

void step(Session& self, const Feeds& steps, binding::Matrix<float> logits) {
  std::vector<Feed> feeds;
  for (const auto& [slot, tokens, first] : steps)
    feeds.push_back({slot, {tokens.data(), tokens.size()}, first});
  self.step(feeds, logits.data(), logits.size());
}

void define_config(nb::module_& m) {
  nb::class_<Rope>(m, "Rope")
      .def(nb::init<>())
      .def_rw("radians", &Rope::radians)
      .def_rw("factor", &Rope::factor);
  nb::class_<Config>(m, "Config")
      .def(nb::init<>())
      .def_rw("hidden", &Config::hidden)
      .def_rw("intermediate", &Config::intermediate)
      .def_rw("heads", &Config::heads)
      .def_rw("kv_heads", &Config::kv_heads)
      .def_rw("head_dim", &Config::head_dim)
      .def_rw("vocab", &Config::vocab)
      .def_rw("positions", &Config::positions)
      .def_rw("norm_eps", &Config::norm_eps)
      .def_rw("norm_offset", &Config::norm_offset)
      .def_rw("attn_scale", &Config::attn_scale)
      .def_rw("embed_scale", &Config::embed_scale)
      .def_prop_rw(
          "gelu_tanh", [](const Config& c) { return c.activation == Activation::kGeluTanh; },
          [](Config& c, bool on) { c.activation = on ? Activation::kGeluTanh : Activation::kSilu; })
      .def_rw("tied", &Config::tied)
      .def_rw("qkv_bias", &Config::qkv_bias)
      .def_rw("o_bias", &Config::o_bias)
      .def_rw("mlp_bias", &Config::mlp_bias)
      .def_rw("qk_norm", &Config::qk_norm)
      .def_rw("post_norms", &Config::post_norms)
      .def_rw("ropes", &Config::ropes)
      .def_rw("rope_of", &Config::rope_of)
      .def_rw("windows", &Config::windows);
}

}  // namespace

void define_model(nb::module_& m) {
  const auto as_is = [](const char* name) { return nb::arg(name).noconvert(); };
  define_config(m);
  nb::class_<Weights>(m, "Model")
      .def(nb::init<const Config&>(), "config"_a)
      .def("add_matrix", &add_matrix, "role"_a, "layer"_a, "format"_a, "shape"_a, "group"_a, "twice_zero"_a,
           as_is("codes"), as_is("scale").none(), as_is("zero").none(), as_is("table").none() = nb::none())
      .def("add_rotation", &add_rotation, "tap"_a, "layer"_a, "order"_a, as_is("signs"), as_is("hadamard"))
      .def("add_vector", &add_vector, "role"_a, "layer"_a, as_is("values"))
      .def("seal", [](Weights& self) { self.model.seal(); });
  nb::class_<Session> session(m, "Session");
  session
      .def("__init__", &make_session, "model"_a, "isa"_a, "threads"_a, "int8"_a, "context"_a, "bits"_a = 16,
           "by_channel"_a = false, "window"_a = 0, "order"_a = 1, as_is("signs").none() = nb::none(),
           as_is("hadamard").none() = nb::none(), nb::keep_alive<1, 2>())
      .def_prop_ro("threads", &Session::threads)
      .def_prop_ro("kv_bytes", &Session::kv_bytes)
      .def("open", &Session::open)
      .def("fork", &Session::fork, "slot"_a, "length"_a)
      .def("close", &Session::close, "slot"_a)
      .def("length", &Session::length, "slot"_a)
      .def("truncate", &Session::truncate, "slot"_a, "length"_a)
      .def("step", &step, "steps"_a, as_is("logits"), Release());
  session.attr("CHUNK") = Session::kChunk;
  session.attr("MOST_THREADS") = Session::kMostThreads;
}

}  // namespace paretobit
