#include "rotation.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace paretobit {
namespace {

void require(bool holds, const std::string& what) {
  if (!holds) throw std::invalid_argument(what);
}

bool all_signs(const Span<int8_t>& values) {
  return std::all_of(values.data, values.data + values.size, [](int8_t v) { return v == 1 || v == -1; });
}

// A row of H adds four inputs with one of sixteen patterns of signs: bit k is set where input k is subtracted. A pick is
// 16 times that, the place of the sum among those of sixteen columns. Picks lie as they are read: kFoursAtOnce fours of
// inputs (the last time what is left) of row 0, of row 1, …; then the next fours.
template <class Entry>
std::vector<uint8_t> picks_of(size_t order, Entry&& entry) {
  std::vector<uint8_t> picks;
  picks.reserve(order * order / 4);
  for (size_t first = 0; first < order / 4; first += kFoursAtOnce)
    for (size_t row = 0; row < order; ++row)
      for (size_t four = first; four < std::min(first + kFoursAtOnce, order / 4); ++four) {
        unsigned pick = 0;
        for (size_t k = 0; k < 4; ++k) pick |= (entry(row, 4 * four + k) < 0 ? 16u : 0u) << k;
        picks.push_back(uint8_t(pick));
      }
  return picks;
}

}  // namespace

OwnedRotation::OwnedRotation(size_t width, size_t order, Span<int8_t> signs, Span<int8_t> hadamard)
    : width_(width), order_(order) {
  require(width >= 1 && width <= kMostRotated, "a rotation's width outside 1..." + std::to_string(kMostRotated));
  require(signs.data && signs.size == width && all_signs(signs), "a rotation's signs are not 1 or -1 for each input");
  if (order == 1) {
    block_ = width & (~width + 1);  // the lowest bit that is set
    require(hadamard.size == 0 || (hadamard.size == 1 && hadamard.data && *hadamard.data == 1),
            "a dense factor of a rotation that has none");
  } else {
    require(order >= 4 && order <= kMostOrder && order % 4 == 0,
            "a rotation's order is no multiple of 4 up to " + std::to_string(kMostOrder));
    block_ = width / order;
    require(width % order == 0 && block_ >= kLeastBlock && (block_ & (block_ - 1)) == 0,
            "a rotation's order does not fit its width");
    require(hadamard.data && hadamard.size == order * order && all_signs(hadamard),
            "a rotation's dense factor is not 1 or -1 everywhere");
    picks_ = picks_of(order, [&](size_t row, size_t column) { return hadamard.data[row * order + column]; });
    unpicks_ = picks_of(order, [&](size_t row, size_t column) { return hadamard.data[column * order + row]; });
  }
  factor_ = float(1.0 / std::sqrt(double(order * block_)));
  signs_.assign(signs.data, signs.data + width);
}

}  // namespace paretobit
