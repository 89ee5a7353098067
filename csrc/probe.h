// Speeds of this machine, measured: reading memory, products of int8, and multiplying with a packed matrix.
#pragma once

#include <cstddef>
#include <vector>

#include "kernels.h"

namespace paretobit {

// All return the seconds of single sweeps, at least three, as many as fit into `limit` seconds; each of `threads`
// threads does its part of a sweep. Threads are started once and do one sweep that does not count: neither starting nor
// placing them is timed. Short sweeps are timed several at once. Throws std::runtime_error where the system gives no
// more threads.

// `bytes` of fresh memory read in order, in whole pages a thread; std::bad_alloc where there is no room for them.
std::vector<double> read_seconds(const Kernels&, size_t bytes, size_t threads, double limit);

// kProducts products and additions of int8 a thread, of numbers that stay in the first cache level.
constexpr size_t kProducts = size_t{1} << 26;
std::vector<double> product_seconds(const Kernels&, size_t threads, double limit);

// out[token * rows + row] = the product of all rows of `matrix` with `inputs`, tiles split over threads.
std::vector<double> multiply_seconds(const Kernels&, const Matrix& matrix, const Inputs& inputs, float* out,
                                     size_t threads, double limit);

}  // namespace paretobit
