// Whether every instruction set gives the same bits.
//   conformance            compares every available ISA with the plain loops of reference.cpp, and with scalar where there
//                          are none; exits 1 on a difference. The last line has one digest of all that was expected:
//                          two machines agree when they print the same
//   conformance --list     the ISAs this build can run here, one a line
//   conformance --isa X    a line "digest case" for everything X computes; X may be `reference`
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
  Digests expected = run("scalar");
  size_t wrong = 0;
  const auto differs = [&](const std::string& isa, const std::string& name) {
    if (++wrong <= 20) std::printf("%s differs: %s\n", isa.c_str(), name.c_str());
  };
  for (const auto& [name, digest] : run("reference")) {
    if (expected[name] != digest) differs("scalar", name);
    expected[name] = digest;
  }
  for (const std::string& isa : available()) {
    if (isa == "scalar") continue;
    const Digests found = run(isa);
    for (const auto& [name, digest] : expected) {
      const auto at = found.find(name);
      if (at == found.end() || at->second != digest) differs(isa, name);
    }
    std::printf("%s: %zu cases\n", isa.c_str(), found.size());
  }
  Digest all;
  for (const auto& [name, digest] : expected) all.add(name.data(), name.size()), all.add(&digest, 1);
  std::printf("%zu differ\n%016" PRIx64 "\n", wrong, all.value());
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
    for (const auto& [name, digest] : run(words[2])) std::printf("%016" PRIx64 " %s\n", digest, name.c_str());
    return 0;
  }
  std::fprintf(stderr, "usage: conformance [--list | --isa NAME]\n");
  return 2;
}
