// Random-sign Hadamard rotations (rotation.h); included once per ISA after layers.inl. The order of operations is that of
// paretobit/rotation.py: dense factor, butterflies from the largest stride to 1, scale; signs before or after.

// x · ±1, for sixteen signs.
PARETOBIT_INLINE Lanes with_signs(const Lanes& x, const int8_t* signs) {
  const Ints wide = widen_bytes(reinterpret_cast<const uint8_t*>(signs));
  Lanes r;
  PARETOBIT_EACH r.part[p] = (Register)((Integers)x.part[p] ^ (wide.part[p] << 24 & INT32_MIN));
  return r;
}

// out may be x.
PARETOBIT_INLINE void apply_signs(const Rotation& r, const float* x, float* out) {
  size_t i = 0;
  for (; i + 16 <= r.width; i += 16) store(out + i, with_signs(load(x + i), r.signs + i));
  for (; i < r.width; ++i) out[i] = x[i] * float(r.signs[i]);
}

// ---- the dense factor

// All ((±a ± b) + (±c ± d)), bit k of the index set where input k is subtracted.
PARETOBIT_INLINE void signed_sums(const Lanes* in, float* sums) {  // (4, 16) -> (16, 16)
  Lanes pairs[2][4];
  for (int i = 0; i < 2; ++i) {
    const Lanes a = in[2 * i], b = in[2 * i + 1];
    pairs[i][0] = a + b;
    pairs[i][1] = b - a;
    pairs[i][2] = a - b;
    pairs[i][3] = all(-1.0f) * a - b;  // not -(a + b): zeros would have the other sign
  }
  for (int i = 0; i < 16; ++i) store(sums + 16 * i, pairs[0][i % 4] + pairs[1][i / 4]);
}

// totals (order, 16) take up kFours more fours of inputs, whose sums (kFours, 16, 16) lie ready; the first fours of all
// replace what was there.
template <size_t kFours>
PARETOBIT_INLINE void pick_sums(const float* sums, const uint8_t* picks, size_t order, bool first, float* totals) {
  for (size_t row = 0; row < order; ++row, picks += kFours) {
    Lanes total = load(sums + picks[0]);
    if (!first) total = load(totals + 16 * row) + total;
    for (size_t f = 1; f < kFours; ++f) total = total + load(sums + 256 * f + picks[f]);
    store(totals + 16 * row, total);
  }
}

// out = (H ⊗ I) x, on sixteen columns at a time. Each four's sixteen signed sums are worked out once and picked from by
// every row: a quarter of the additions, and no sign to apply.
template <bool kSigned>
PARETOBIT_INLINE void dense(const Rotation& r, const uint8_t* picks, const float* x, float* out) {
  alignas(64) float sums[kFoursAtOnce * 256], totals[kMostOrder * 16];
  for (size_t column = 0; column < r.block; column += 16) {
    const uint8_t* next = picks;
    for (size_t four = 0, count; four < r.order / 4; four += count) {
      count = std::min(kFoursAtOnce, r.order / 4 - four);
      for (size_t f = 0; f < count; ++f) {
        Lanes in[4];
        for (size_t k = 0; k < 4; ++k) {
          const size_t at = (4 * (four + f) + k) * r.block + column;
          in[k] = kSigned ? with_signs(load(x + at), r.signs + at) : load(x + at);
        }
        signed_sums(in, sums + 256 * f);
      }
      switch (count) {
        case 1: pick_sums<1>(sums, next, r.order, four == 0, totals); break;
        case 2: pick_sums<2>(sums, next, r.order, four == 0, totals); break;
        case 3: pick_sums<3>(sums, next, r.order, four == 0, totals); break;
        default: pick_sums<4>(sums, next, r.order, four == 0, totals); break;
      }
      next += count * r.order;
    }
    for (size_t row = 0; row < r.order; ++row) store(out + row * r.block + column, load(totals + 16 * row));
  }
}

// ---- butterflies

// Between registers: strides of kCount / 2, …, 1 registers.
template <int kCount>
PARETOBIT_INLINE void across(Lanes* v) {
  if constexpr (kCount > 1) {
    for (int i = 0; i < kCount / 2; ++i) {
      const Lanes a = v[i], b = v[i + kCount / 2];
      v[i] = a + b;
      v[i + kCount / 2] = a - b;
    }
    across<kCount / 2>(v);
    across<kCount / 2>(v + kCount / 2);
  }
}

#if PARETOBIT_WIDTH == 16
#define PARETOBIT_EACH_LANE(f) \
  f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7), f(8), f(9), f(10), f(11), f(12), f(13), f(14), f(15)
#elif PARETOBIT_WIDTH == 8
#define PARETOBIT_EACH_LANE(f) f(0), f(1), f(2), f(3), f(4), f(5), f(6), f(7)
#else
#define PARETOBIT_EACH_LANE(f) f(0), f(1), f(2), f(3)
#endif
#define PARETOBIT_PARTNER(lane) lane ^ kStride
#define PARETOBIT_UPPER(lane) lane & kStride ? INT32_MIN : 0

// Between lanes: lower ones become the sum with their partner kStride further on, upper ones the difference from it.
template <int kStride>
PARETOBIT_INLINE Lanes within(const Lanes& a) {
  Lanes r;
  if constexpr (kStride >= PARETOBIT_WIDTH) {
    constexpr int kApart = kStride / PARETOBIT_WIDTH;
    PARETOBIT_EACH r.part[p] = p & kApart ? a.part[p ^ kApart] - a.part[p] : a.part[p] + a.part[p ^ kApart];
  } else {
    const Integers upper = {PARETOBIT_EACH_LANE(PARETOBIT_UPPER)};
    PARETOBIT_EACH {
#if defined(__clang__)
      const Register partner = __builtin_shufflevector(a.part[p], a.part[p], PARETOBIT_EACH_LANE(PARETOBIT_PARTNER));
#else
      const Register partner = __builtin_shuffle(a.part[p], Integers{PARETOBIT_EACH_LANE(PARETOBIT_PARTNER)});
#endif
      r.part[p] = partner + (Register)((Integers)a.part[p] ^ upper);
    }
  }
  return r;
}

#undef PARETOBIT_EACH_LANE
#undef PARETOBIT_PARTNER
#undef PARETOBIT_UPPER

// Lanes that go through several strides between two visits to memory: what fits the registers.
constexpr size_t kRadix = PARETOBIT_WIDTH == 16 ? 8 : 4;

// The largest strides of spans of elements: span / 2, …, span / kCount.
template <int kCount>
PARETOBIT_INLINE void far_strides(float* x, size_t width, size_t span) {
  const size_t apart = span / kCount;
  for (size_t start = 0; start < width; start += span)
    for (size_t i = start; i < start + apart; i += 16) {
      Lanes v[kCount];
      for (int k = 0; k < kCount; ++k) v[k] = load(x + i + size_t(k) * apart);
      across<kCount>(v);
      for (int k = 0; k < kCount; ++k) store(x + i + size_t(k) * apart, v[k]);
    }
}

// The strides that are left in spans of 16 · kCount elements, and the scale.
template <int kCount>
PARETOBIT_INLINE void near_strides(float* x, size_t width, float factor) {
  for (size_t i = 0; i < width; i += 16 * kCount) {
    Lanes v[kCount];
    for (int k = 0; k < kCount; ++k) v[k] = load(x + i + 16 * k);
    across<kCount>(v);
    for (int k = 0; k < kCount; ++k)
      store(x + i + 16 * k, within<1>(within<2>(within<4>(within<8>(v[k])))) * all(factor));
  }
}

// Every block of fewer than 16 elements.
PARETOBIT_INLINE void small_blocks(const Rotation& r, float* x) {
  for (size_t start = 0; start < r.width; start += r.block) {
    for (size_t stride = r.block / 2; stride; stride /= 2)
      for (size_t i = start; i < start + r.block; ++i) {
        if ((i - start) & stride) continue;
        const float a = x[i], b = x[i + stride];
        x[i] = a + b;
        x[i + stride] = a - b;
      }
  }
  for (size_t i = 0; i < r.width; ++i) x[i] *= r.factor;
}

PARETOBIT_INLINE void butterflies(const Rotation& r, float* x) {
  if (r.block < 16) return small_blocks(r, x);
  size_t span = r.block;
  while (span > 16 * kRadix) {
    const size_t count = std::min(kRadix, span / (16 * kRadix));
    if (count == 8) far_strides<8>(x, r.width, span);
    else if (count == 4) far_strides<4>(x, r.width, span);
    else far_strides<2>(x, r.width, span);
    span /= count;
  }
  switch (span / 16) {
    case 1: return near_strides<1>(x, r.width, r.factor);
    case 2: return near_strides<2>(x, r.width, r.factor);
    case 4: return near_strides<4>(x, r.width, r.factor);
    default: return near_strides<8>(x, r.width, r.factor);
  }
}

void rotate_inputs(const Rotation& r, const float* x, float* out) {
  if (r.order > 1) dense<true>(r, r.picks, x, out);
  else apply_signs(r, x, out);
  butterflies(r, out);
}

void unrotate_inputs(const Rotation& r, const float* x, float* out) {
  if (r.order > 1) dense<false>(r, r.unpicks, x, out);
  else std::memcpy(out, x, r.width * sizeof(float));
  butterflies(r, out);
  apply_signs(r, out, out);
}
