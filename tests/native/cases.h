// What the conformance program computes with one ISA's kernels.
#pragma once

#include <functional>
#include <string>

#include "generate.h"
#include "kernels.h"
#include "reference.h"

namespace paretobit::test {

using Report = std::function<void(const std::string& name, const Digest& digest)>;

// Runs every case; of the plain loops' table only those it has functions for. Ends the program with a message where results depend on how the
// work was split, or where a kernel writes beside its output.
void run_cases(const Kernels& kernels, const Report& report);

void search_cases(const Kernels& kernels, const Report& report);  // what rounding and training compute
void layer_cases(const Kernels& kernels, const Report& report);   // norms, gates, rotations, attention
void pack_cases(const Report& report);                            // packing, the same for every ISA

}  // namespace paretobit::test
