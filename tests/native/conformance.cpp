// Whether every instruction set gives the same bits.
//   conformance            compares every available ISA with the plain loops of reference.cpp; exits 1 on a difference
//   conformance --list     the ISAs this build can run here, one a line
//   conformance --isa X    a line "case digest" for everything X computes; X may be `reference`
// A digest is of all output bits, so two machines agree when they print the same lines.
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>

#include "cases.h"

namespace paretobit::test {
namespace {

using Digests = std::map<std::string, uint64_t>;

Digests run(const std::string& isa) {
  Digests digests;
  run_cases(isa == "reference" ? reference() : kernels(isa),
            [&](const std::string& name, const Digest& digest) { digests[name] = digest.value(); });
  return digests;
}

int compare_all() {
  const Digests expected = run("reference");
  const Digests scalar = run("scalar");
  size_t wrong = 0, compared = 0;
  for (const std::string& isa : available()) {
    for (const auto& [name, digest] : run(isa)) {
      const auto found = expected.find(name);
      const bool same = digest == (found == expected.end() ? scalar.at(name) : found->second);
      compared += 1;
      if (!same && ++wrong <= 20) std::printf("%s differs: %s\n", isa.c_str(), name.c_str());
    }
  }
  std::printf("%zu digests compared, %zu differ\n", compared, wrong);
  return wrong ? 1 : 0;
}

}  // namespace
}  // namespace paretobit::test

int main(int count, char** words) {
  using namespace paretobit::test;
  const std::string option = count > 1 ? words[1] : "";
  if (count == 1) return compare_all();
  if (count == 2 && option == "--list") {
    for (const std::string& isa : paretobit::available()) std::printf("%s\n", isa.c_str());
    return 0;
  }
  if (count == 3 && option == "--isa") {
    for (const auto& [name, digest] : run(words[2])) std::printf("%s %016" PRIx64 "\n", name.c_str(), digest);
    return 0;
  }
  std::fprintf(stderr, "usage: conformance [--list | --isa NAME]\n");
  return 2;
}
