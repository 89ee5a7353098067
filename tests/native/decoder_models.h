// Small decoders with random weights: every format, and everything that the supported architectures switch on or off.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "matrices.h"
#include "model.h"

namespace paretobit::test {

// A sealed model and the bytes it points into.
struct Decoder {
  std::string name;
  std::deque<Packed> matrices;
  std::unique_ptr<Model> model;
};

std::vector<Decoder> make_decoders();

}  // namespace paretobit::test
