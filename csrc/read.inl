// Memory read as fast as loads of this ISA's width can take it. Included once per ISA namespace by dispatch.cpp.

typedef uint64_t Words __attribute__((vector_size(4 * PARETOBIT_WIDTH)));
constexpr size_t kChains = 8;  // independent: no load waits for the sum of another

// The exclusive or of all 64-bit words; `bytes` is a multiple of 512.
uint64_t read_words(const uint8_t* from, size_t bytes) {
  Words sums[kChains] = {};
  for (size_t at = 0; at < bytes; at += sizeof sums)
    for (size_t i = 0; i < kChains; ++i) {
      Words w;
      std::memcpy(&w, from + at + i * sizeof w, sizeof w);
      sums[i] ^= w;
    }
  for (size_t i = 1; i < kChains; ++i) sums[0] ^= sums[i];
  uint64_t all = 0;
  for (size_t lane = 0; lane < sizeof(Words) / 8; ++lane) all ^= sums[0][lane];
  return all;
}
