// The kernels of every ISA behind one table of function pointers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace paretobit {

enum ZeroKind { kStored = 0, kTwos = 1, kMid = 2 };
constexpr int kZeros = 5;  // stored zero points tried around the one that fits the group's range

// Inputs and outputs of the scale search; shapes as in paretobit/scales.py. Sizes are checked by the caller.
struct SearchArgs {
  const float* w;           // (rows, columns)
  const float* importance;  // (columns,) or null
  size_t rows, columns, group;
  int levels;
  ZeroKind kind;
  float offset;         // zero point of grids that store none
  const float* coarse;  // factors on the scale at which the range fits; a multiple of 16 of them
  size_t coarse_count;
  const float* fine;  // 16 factors around the best
  uint16_t* scale;    // fp16 (rows, groups)
  uint8_t* zero;      // (rows, groups), or null where the grid stores none
  float* error;       // (rows, groups) weighted squared error
};

struct Kernels {
  const char* name;
  void (*search_rows)(const SearchArgs&, size_t first, size_t last);
};

// What this machine can run, best first; the last is always "scalar".
std::vector<std::string> available();

// The kernels of one ISA; throws std::invalid_argument on a name that is not available here.
const Kernels& kernels(const std::string& isa);

}  // namespace paretobit
