// The only file that knows Python. Sizes are checked here, before any pointer is used; the rest trusts them.
// Arrays come C-contiguous and of the right type from paretobit/native.py: nothing is converted or copied.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <stdexcept>
#include <type_traits>

#include "bind.h"
#include "kernels.h"
#include "pack.h"
#include "threads.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace paretobit::binding;

namespace {

void pack(Codes codes, int format, size_t group, Matrix<uint8_t> out, int threads) {
  const auto at = paretobit::layout_of(format, codes.shape(0), codes.shape(1), group);
  require(is_shape(out, at.tiles, at.tile_bytes), "packed tiles of the wrong size");
  paretobit::pack(at, codes.data(), out.data(), threads);
}

void unpack(Codes packed, int format, size_t group, Matrix<uint8_t> out, int threads) {
  const auto at = paretobit::layout_of(format, out.shape(0), out.shape(1), group);
  require(is_shape(packed, at.tiles, at.tile_bytes), "packed tiles of the wrong size");
  paretobit::unpack(at, packed.data(), out.data(), threads);
}

void dequant(Codes codes, Halves scale, std::optional<Codes> zero, size_t group, float offset,
             Matrix<float> out, int threads) {
  const size_t rows = out.shape(0), columns = out.shape(1), groups = groups_of(columns, group);
  require(is_shape(codes, rows, columns), "codes and output differ in shape");
  require(is_shape(scale, rows, groups), "scales do not fit the groups");
  require(!zero || is_shape(*zero, rows, groups), "zero points do not fit the groups");
  paretobit::dequant(codes.data(), zero ? zero->data() : nullptr, {scale.data(), group, offset}, rows,
                     columns, out.data(), threads);
}

void dequant_trellis(Codes codes, Halves scale, int twice_bits, Array<const float, 1> values, Matrix<float> out, int threads) {
  const size_t rows = out.shape(0), columns = out.shape(1);
  require(columns > 0, "a matrix without columns");
  require(is_shape(codes, rows, columns) && is_shape(scale, rows, 1), "codes or scales do not fit the output");
  require(twice_bits >= 2 && twice_bits <= 8 && values.shape(0) == 256, "no trellis");
  paretobit::dequant_trellis(codes.data(), scale.data(), twice_bits, values.data(), rows, columns, out.data(), threads);
}

void scale_search(Matrix<const float> w, std::optional<Array<const float, 1>> importance, int levels,
                  size_t group, int kind, float offset, Array<const float, 1> coarse,
                  Array<const float, 1> fine, Matrix<uint16_t> scale, std::optional<Matrix<uint8_t>> zero,
                  Matrix<float> error, const std::string& isa, int threads) {
  const size_t rows = w.shape(0), columns = w.shape(1), groups = groups_of(columns, group);
  require(!importance || importance->shape(0) == columns, "importance does not fit the columns");
  require(levels >= 2 && levels <= 256, "levels outside 2...256");
  require(kind >= paretobit::kStored && kind <= paretobit::kMid, "unknown kind of zero point");
  require(kind == paretobit::kStored || (offset >= 0.5f && offset <= 128.0f), "offset outside 0.5...128");
  require(coarse.shape(0) >= 16 && coarse.shape(0) % 16 == 0, "coarse factors come in sixteens");
  require(fine.shape(0) == 16, "there are 16 fine factors");
  require(is_shape(scale, rows, groups) && is_shape(error, rows, groups), "outputs do not fit the groups");
  require(zero.has_value() == (kind == paretobit::kStored),
          "zero points are given exactly where they are stored");
  require(!zero || is_shape(*zero, rows, groups), "zero points do not fit the groups");
  const paretobit::SearchArgs args{w.data(),
                                   importance ? importance->data() : nullptr,
                                   rows,
                                   columns,
                                   group,
                                   levels,
                                   static_cast<paretobit::ZeroKind>(kind),
                                   offset,
                                   coarse.data(),
                                   coarse.shape(0),
                                   fine.data(),
                                   scale.data(),
                                   zero ? zero->data() : nullptr,
                                   error.data()};
  const paretobit::Kernels& kernels = paretobit::kernels(isa);
  constexpr size_t kCost = 256;  // a weight is swept about as many times as would touch this many bytes
  paretobit::parallel_rows(rows, kCost * columns, threads,
                           [&](size_t first, size_t last) { kernels.search_rows(args, first, last); });
}

template <class T>
void feed_back(Matrix<T> rest, size_t start, Matrix<const T> upper, std::optional<Matrix<const T>> pull,
               Matrix<const T> scale, std::optional<Matrix<const T>> zero, T offset,
               Array<const int64_t, 1> group_of, int levels, Matrix<uint8_t> codes, Matrix<T> errors,
               std::optional<Matrix<T>> moved, const std::string& isa, int threads) {
  const size_t rows = rest.shape(0), width = rest.shape(1), count = upper.shape(0), groups = scale.shape(1);
  require(count > 0 && start <= width && count <= width - start, "the block lies outside the matrix");
  require(is_shape(upper, count, count) && (!pull || is_shape(*pull, count, count)), "factors do not fit the block");
  require(is_shape(scale, rows, groups) && (!zero || is_shape(*zero, rows, groups)), "scales do not fit the matrix");
  require(group_of.shape(0) == count, "groups do not fit the block");
  for (size_t j = 0; j < count; ++j)
    require(group_of.data()[j] >= 0 && size_t(group_of.data()[j]) < groups, "a group outside the scales");
  require(levels >= 2 && levels <= 256, "levels outside 2...256");
  require(is_shape(codes, rows, width) && is_shape(errors, rows, count), "outputs do not fit the matrix");
  require(moved.has_value() == pull.has_value() && (!moved || is_shape(*moved, rows, count)),
          "moved columns are given exactly with pull");
  const paretobit::FeedbackArgs<T> args{rest.data(),
                                        rows,
                                        width,
                                        start,
                                        count,
                                        upper.data(),
                                        pull ? pull->data() : nullptr,
                                        scale.data(),
                                        zero ? zero->data() : nullptr,
                                        offset,
                                        groups,
                                        group_of.data(),
                                        levels,
                                        codes.data(),
                                        errors.data(),
                                        moved ? moved->data() : nullptr};
  const paretobit::Kernels& kernels = paretobit::kernels(isa);
  paretobit::parallel_rows(rows, count * count, threads, [&](size_t first, size_t last) {
    if constexpr (std::is_same_v<T, float>)
      kernels.feed_back(args, first, last);
    else
      kernels.feed_back_double(args, first, last);
  });
}

template <class T>
void define_feed_back(nb::module_& m) {
  const auto as_is = [](const char* name) { return nb::arg(name).noconvert(); };
  m.def("feed_back", &feed_back<T>, as_is("rest"), "start"_a, as_is("upper"), as_is("pull").none(), as_is("scale"),
        as_is("zero").none(), "offset"_a, as_is("group_of"), "levels"_a, as_is("codes"), as_is("errors"),
        as_is("moved").none(), "isa"_a, "threads"_a, Release());
}

}  // namespace

NB_MODULE(_native, m) {
  m.doc() = "paretobit's compiled part; use it through paretobit.native";
  const auto as_is = [](const char* name) { return nb::arg(name).noconvert(); };
  m.def("available", &paretobit::available);
  m.def("pack", &pack, as_is("codes"), "format"_a, "group"_a, as_is("out"), "threads"_a, Release());
  m.def("unpack", &unpack, as_is("packed"), "format"_a, "group"_a, as_is("out"), "threads"_a, Release());
  m.def("dequant", &dequant, as_is("codes"), as_is("scale"), as_is("zero").none(), "group"_a, "offset"_a,
        as_is("out"), "threads"_a, Release());
  m.def("dequant_trellis", &dequant_trellis, as_is("codes"), as_is("scale"), "twice_bits"_a, as_is("values"), as_is("out"),
        "threads"_a, Release());
  m.def("scale_search", &scale_search, as_is("w"), as_is("importance").none(), "levels"_a, "group"_a,
        "kind"_a, "offset"_a, as_is("coarse"), as_is("fine"), as_is("scale"), as_is("zero").none(),
        as_is("error"), "isa"_a, "threads"_a, Release());
  define_feed_back<float>(m);
  define_feed_back<double>(m);
  paretobit::define_layers(m);
  paretobit::define_model(m);
  paretobit::define_multiply(m);
  paretobit::define_probe(m);
  paretobit::define_rotation(m);
  paretobit::define_sampler(m);
  paretobit::define_training(m);
  paretobit::define_trellis(m);
}
