// What the files that know Python share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <stdexcept>

namespace paretobit {

void define_layers(nanobind::module_& m);
void define_model(nanobind::module_& m);
void define_multiply(nanobind::module_& m);
void define_probe(nanobind::module_& m);
void define_rotation(nanobind::module_& m);
void define_sampler(nanobind::module_& m);
void define_training(nanobind::module_& m);
void define_trellis(nanobind::module_& m);

namespace binding {

namespace nb = nanobind;

template <class T, int kDims>
using Array = nb::ndarray<T, nb::ndim<kDims>, nb::c_contig, nb::device::cpu>;
template <class T>
using Matrix = Array<T, 2>;
using Codes = Matrix<const uint8_t>;
using Halves = Matrix<const uint16_t>;
using Release = nb::call_guard<nb::gil_scoped_release>;

inline void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

// Of a measurement that goes on for `limit` seconds.
inline void check_effort(size_t threads, double limit) {
  require(threads >= 1 && threads <= 1024, "threads outside 1...1024");
  require(limit >= 0 && limit <= 3600, "a limit outside 0...3600 seconds");
}

template <class A>
bool is_shape(const A& array, size_t rows, size_t columns) {
  return array.shape(0) == rows && array.shape(1) == columns;
}

inline size_t groups_of(size_t columns, size_t group) {
  require(columns > 0, "a matrix without columns");
  require(group > 0, "a group of 0 columns");
  return (columns - 1) / group + 1;
}

}  // namespace binding
}  // namespace paretobit
