// Five ternary digits a byte y = ⌊256 n / 243⌋, n = Σ digit_q · 3^(4 − q): the first is ⌊3 (y + 1) / 256⌋, and
// 3 y + 2 (modulo 256) holds the rest.

PARETOBIT_INLINE Bytes first_digit(const Bytes& y) { return field<6, 3>(average(y, average(y, Bytes{}))); }

#if PARETOBIT_TRIT_TABLE
// Looks digits 1...4 up together.
struct Trits {
  Bytes y, rest;
  PARETOBIT_MEMBER explicit Trits(const uint8_t* from)
      : y(load_bytes(from)), rest(look_up(kTritTable.data(), y)) {}
  template <int kQuad>
  PARETOBIT_MEMBER Bytes digit() const {
    if constexpr (kQuad == 0) return first_digit(y);
    else return field<2 * kQuad - 2, 3>(rest);
  }
};
#else
struct Trits {
  Bytes y;
  PARETOBIT_MEMBER explicit Trits(const uint8_t* from) : y(load_bytes(from)) {}
  template <int kQuad>
  PARETOBIT_MEMBER Bytes digit() {
    const Bytes found = first_digit(y);
    if (kQuad < 4) y = (y + all_bytes(2)) + (y + y);
    return found;
  }
};
#endif
