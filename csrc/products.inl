// Products of int8 as fast as this ISA's instructions make them: what the loops of multiply.inl have to do anyway,
// without unpacking, scales or memory. Codes and activations lie in the first cache level, sums in registers.

template <int kSets, int kCount>
PARETOBIT_APART void some_products(const ProductArgs& a, size_t set, size_t token) {
  constexpr int kTop = 255;
  Sum sum[kCount][kSets];
  for (auto& own : sum)
    for (Sum& s : own) s = no_sum();
  for (size_t q = 0; q < a.quads; ++q) {
    Bytes codes[kSets];
    for (int s = 0; s < kSets; ++s) codes[s] = load_bytes(a.codes + (q * kProductSets + set + size_t(s)) * kVector);
#pragma GCC unroll 8
    for (int n = 0; n < kCount; ++n) {
      const Quad four = load_quad(a.activations + 4 * ((token + size_t(n)) * a.quads + q));
      for (int s = 0; s < kSets; ++s) add_dot<kTop>(sum[n][s], codes[s], four);
      for (int s = 0; s < kSets; ++s) spill<kTop>(sum[n][s], int(q) + 1);
    }
  }
  for (size_t n = 0; n < kCount; ++n)
    for (size_t s = 0; s < kSets; ++s) {
      const Ints dots = total<kTop>(sum[n][s], a.sums[token + n]);
      std::memcpy(a.out + ((token + n) * kProductSets + set + s) * kSet, &dots, sizeof dots);
    }
}

void products(const ProductArgs& a) {
  constexpr int kSets = PARETOBIT_WIDTH == 16 ? 2 : 1, kCount = kFits ? 8 : 4;
  for (size_t set = 0; set < kProductSets; set += kSets)
    for (size_t token = 0; token < kProductTokens; token += kCount) some_products<kSets, kCount>(a, set, token);
}
