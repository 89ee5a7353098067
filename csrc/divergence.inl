// Distillation's loss, of which as_original in paretobit/compress/distill.py is the definition: for every token the
// divergence of what a model predicts from what the original does, and its gradient at the model's logits, in three passes
// over a row that stays in the cache. Logits are floats, or bf16 as uint16_t. Included once per ISA by dispatch.cpp.

PARETOBIT_INLINE Lanes some_numbers(const float* from, size_t count) { return load_some(from, count); }
PARETOBIT_INLINE Lanes some_numbers(const uint16_t* from, size_t count) {
  uint16_t last[16] = {};
  if (count < 16) std::memcpy(last, from, 2 * count), from = last;
  const Ints words = widen_shorts(from);
  Lanes r;
  PARETOBIT_EACH r.part[p] = (Register)(words.part[p] << 16);
  return r;
}

PARETOBIT_INLINE void put_numbers(float* to, const Lanes& x, size_t count) { store_some(to, x, count); }
PARETOBIT_INLINE void put_numbers(uint16_t* to, const Lanes& x, size_t count) {
  typedef uint16_t Narrow __attribute__((vector_size(2 * PARETOBIT_WIDTH)));
  uint16_t words[16];
  PARETOBIT_EACH {  // ties to even; NaN would round to something else
    const Integers bits = (Integers)x.part[p], even = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
    const Integers result = (bits & INT32_MAX) > 0x7F800000 ? 0x7FC0 - Integers{} : even & 0xFFFF;
    const Narrow narrow = __builtin_convertvector(result, Narrow);
    std::memcpy(words + p * PARETOBIT_WIDTH, &narrow, sizeof narrow);
  }
  std::memcpy(to, words, 2 * std::min<size_t>(count, 16));
}

// Lanes from `count` on become `rest`.
PARETOBIT_INLINE Lanes first_lanes(const Lanes& x, float rest, size_t count) {
  if (count >= 16) return x;
  float lane[16];
  store(lane, x);
  for (size_t i = count; i < 16; ++i) lane[i] = rest;
  return load(lane);
}

struct Softmax {
  float top, sum;  // of the logits, and of e^(logit - top)
};

// powers: e^(logit - top), whole lanes.
template <class T>
static Softmax soften(const T* logits, size_t count, float* powers) {
  constexpr float kLowest = -3.0e38f;
  Lanes tops = all(kLowest), sum = all(0.0f);
  for (size_t i = 0; i < count; i += 16)
    tops = most(tops, first_lanes(some_numbers(logits + i, count - i), kLowest, count - i));
  const float top = highest(tops);
  for (size_t i = 0; i < count; i += 16) {
    const Lanes power = exponential(some_numbers(logits + i, count - i) - all(top));
    const Lanes counted = first_lanes(power, 0.0f, count - i);
    store(powers + i, counted);
    sum = sum + counted;
  }
  return {top, tree_sum(sum)};
}

template <class T>
static void divergence_rows(const DivergenceArgs& a, float* scratch, size_t first, size_t last) {
  float *p = scratch, *q = scratch + (a.columns + 15) / 16 * 16;
  for (size_t r = first; r < last; ++r) {
    const size_t at = r * a.columns;
    const T *wanted = static_cast<const T*>(a.wanted) + at, *found = static_cast<const T*>(a.found) + at;
    const Softmax of_p = soften(wanted, a.columns, p), of_q = soften(found, a.columns, q);
    const Lanes share_p = all(1.0f / of_p.sum), share_q = all(1.0f / of_q.sum), factor = all(a.factor);
    const double apart = (double(of_p.top) + std::log(double(of_p.sum))) - (double(of_q.top) + std::log(double(of_q.sum)));
    const Lanes shift = all(float(apart));  // of the logarithms of both sums
    Lanes sum = all(0.0f);
    for (size_t i = 0; i < a.columns; i += 16) {
      const size_t left = a.columns - i;
      const Lanes likely = load(p + i) * share_p;
      const Lanes ratio = (some_numbers(wanted + i, left) - some_numbers(found + i, left)) - shift;
      sum = sum + likely * ratio;
      put_numbers(static_cast<T*>(a.gradient) + at + i, (load(q + i) * share_q - likely) * factor, left);
    }
    a.loss[r] = tree_sum(sum);
  }
}

void divergence(const DivergenceArgs& a, float* scratch, size_t first, size_t last) {
  a.bf16 ? divergence_rows<uint16_t>(a, scratch, first, last) : divergence_rows<float>(a, scratch, first, last);
}
