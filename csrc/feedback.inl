// GPTQ's inner loop: the columns of one block, rounded in order, each error fed on to the block's later columns. The
// definition is the torch loop in paretobit/compress/methods/gptq.py; operations and their order are the same. Rows
// do not interact; several go together because each is one long chain of dependent operations.
// Included once per ISA by dispatch.cpp.

template <class T>
PARETOBIT_INLINE T nearest_code(T w, T scale, T zero, T top) {
  const T x = std::nearbyint(w / (scale == T(0) ? T(1) : scale) + zero);
  return x < T(0) ? T(0) : (x > top ? top : x);
}

template <class T, int kRows>
PARETOBIT_INLINE void feed_back_together(const FeedbackArgs<T>& a, size_t row) {
  const T top = T(a.levels - 1);
  T* rest[kRows];
  for (int n = 0; n < kRows; ++n) rest[n] = a.rest + (row + n) * a.width + a.start;
  for (size_t j = 0; j < a.count; ++j) {
    const T* upper = a.upper + j * a.count;
    T error[kRows], moved[kRows];
    for (int n = 0; n < kRows; ++n) {
      const size_t g = (row + n) * a.groups + a.group_of[j];
      const T w = rest[n][j], scale = a.scale[g], zero = a.zero ? a.zero[g] : a.offset;
      const T code = nearest_code(w, scale, zero, top);
      a.codes[(row + n) * a.width + a.start + j] = static_cast<uint8_t>(code);
      error[n] = (w - scale * (code - zero)) / upper[j];
      a.errors[(row + n) * a.count + j] = error[n];
      moved[n] = w;
      if (a.moved) a.moved[(row + n) * a.count + j] = w;
    }
    if (a.pull) {
      const T* pull = a.pull + j * a.count;
      for (int n = 0; n < kRows; ++n)
        for (size_t k = j + 1; k < a.count; ++k) rest[n][k] = (rest[n][k] + pull[k] * moved[n]) - upper[k] * error[n];
    } else {
      for (int n = 0; n < kRows; ++n)
        for (size_t k = j + 1; k < a.count; ++k) rest[n][k] -= upper[k] * error[n];
    }
  }
}

template <class T>
void feed_back_rows(const FeedbackArgs<T>& a, size_t first, size_t last) {
  constexpr int kTogether = 4;
  size_t row = first;
  for (; row + kTogether <= last; row += kTogether) feed_back_together<T, kTogether>(a, row);
  for (; row < last; ++row) feed_back_together<T, 1>(a, row);
}
