// Everything of a decoder but its matrices: norms, rotations, attention, gates. Included once per ISA after
// multiply.inl. A reduction runs over sixteen lanes, lane l taking elements l, l + 16, …, or over channels or
// positions in their order: the result depends neither on the ISA nor on what is computed beside it.

PARETOBIT_INLINE void store_some(float* to, const Lanes& a, size_t count) {
  if (count >= 16) return store(to, a);
  float rest[16];
  store(rest, a);
  std::memcpy(to, rest, count * sizeof(float));
}

PARETOBIT_INLINE float highest(const Lanes& a) {
  float lane[16];
  store(lane, a);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] = lane[i] < lane[i + half] ? lane[i + half] : lane[i];
  return lane[0];
}

// e^x, relatively within 1.5 · 2^-24 of it; 0 below -87.3 and e^88 above 88. x = n ln 2 + r with ln 2 in two
// parts, then the polynomial of Cephes' expf on |r| <= ln 2 / 2, times 2^n.
PARETOBIT_INLINE Lanes exponential(const Lanes& x) {
  const Lanes low = all(-87.3f), magic = all(12582912.0f);
  const Lanes inside = most(low, least(all(88.0f), x));  // in this order NaN stays
  const Lanes shifted = inside * all(1.44269504f) + magic, n = shifted - magic;
  const Lanes r = (inside - n * all(0.693359375f)) - n * all(-2.12194440e-4f);
  Lanes y = all(1.9875691500e-4f);
  y = y * r + all(1.3981999507e-3f);
  y = y * r + all(8.3334519073e-3f);
  y = y * r + all(4.1665795894e-2f);
  y = y * r + all(1.6666665459e-1f);
  y = y * r + all(5.0000001201e-1f);
  y = (y * (r * r) + r) + all(1.0f);
  Lanes power;  // the low bits of 1.5 · 2^23 + n are n
  PARETOBIT_EACH power.part[p] = (Register)(((Integers)shifted.part[p] + 127) << 23);
  return choose(x < low, all(0.0f), y * power);
}

void rms_norm(const float* x, const float* weight, size_t count, float eps, float* out) {
  Lanes squares = all(0.0f);
  for (size_t i = 0; i < count; i += 16) {
    const Lanes v = load_some(x + i, count - i);
    squares = squares + v * v;
  }
  const Lanes factor = all(1.0f / __builtin_sqrtf(tree_sum(squares) / float(count) + eps));
  for (size_t i = 0; i < count; i += 16)
    store_some(out + i, (load_some(x + i, count - i) * factor) * load_some(weight + i, count - i), count - i);
}

void add(float* x, const float* y, size_t count) {
  for (size_t i = 0; i < count; i += 16)
    store_some(x + i, load_some(x + i, count - i) + load_some(y + i, count - i), count - i);
}

void scale(float* x, float factor, size_t count) {
  for (size_t i = 0; i < count; i += 16)
    store_some(x + i, load_some(x + i, count - i) * all(factor), count - i);
}

// silu(g) = g / (1 + e^-g). gelu with tanh is g / (1 + e^-2u), u = √(2/π) (g + 0.044715 g³), since
// (1 + tanh u) / 2 = 1 / (1 + e^-2u).
void gate(Activation activation, float* gates, const float* up, size_t count) {
  const bool gelu = activation == Activation::kGeluTanh;
  for (size_t i = 0; i < count; i += 16) {
    const Lanes g = load_some(gates + i, count - i);
    const Lanes slope = gelu ? all(-1.5957691216f) * (all(1.0f) + all(0.044715f) * (g * g)) : all(-1.0f);
    const Lanes active = g / (all(1.0f) + exponential(g * slope));
    store_some(gates + i, active * load_some(up + i, count - i), count - i);
  }
}

void rotate(float* head, const float* cosines, const float* sines, size_t half) {
  for (size_t i = 0; i < half; i += 16) {
    const size_t left = half - i;
    const Lanes c = load_some(cosines + i, left), s = load_some(sines + i, left);
    const Lanes a = load_some(head + i, left), b = load_some(head + half + i, left);
    store_some(head + i, a * c - b * s, left);
    store_some(head + half + i, b * c + a * s, left);
  }
}

// IEEE half precision, ties to even, as the hardware's conversion: overflow gives infinity, NaN stays NaN.
void to_half(const float* from, uint16_t* to, size_t count) {
  typedef uint16_t Narrow __attribute__((vector_size(2 * PARETOBIT_WIDTH)));
  for (size_t i = 0; i < count; i += 16) {
    const Lanes x = load_some(from + i, count - i);
    uint16_t half[16];
    PARETOBIT_EACH {
      const Integers bits = (Integers)x.part[p], size = bits & INT32_MAX;
      // Rounded to ten bits of mantissa; below 2^-14 halves are 2^-24 apart, as floats are in [0.5, 1).
      const Integers normal = ((size + 0xFFF + (size >> 13 & 1)) >> 13) - (112 << 10);
      const Integers tiny = (Integers)((Register)size + 0.5f) - 0x3F000000;
      const Integers large = size > 0x7F800000 ? (size >> 13 & 1023) | 0x7E00 : 0x7C00 - Integers{};
      const Integers finite = size < 0x38800000 ? tiny : normal;
      const Integers result = (size < 0x47800000 ? finite : large) | (bits >> 16 & 0x8000);
      const Narrow narrow = __builtin_convertvector(result, Narrow);
      std::memcpy(half + p * PARETOBIT_WIDTH, &narrow, sizeof narrow);
    }
    std::memcpy(to + i, half, std::min<size_t>(16, count - i) * sizeof(uint16_t));
  }
}

// ---- attention

PARETOBIT_INLINE Lanes load_wide(const float* from) { return load(from); }
PARETOBIT_INLINE Lanes load_wide(const uint16_t* from) { return from_half(from); }

// What is known of a query's softmax so far, all relative to e^most: floats [0] most, [16, 32) the weights'
// sum by lanes, [32, 32 + width) the weighted sum of values.
constexpr size_t kSum = 16, kValues = 32;

// Row `row` of the halves that are read next. Who reads none next passes what lies in cache already: a request
// for that costs less than asking whether to make it.
PARETOBIT_INLINE void ask_for(const uint16_t* next, size_t row) {
  __builtin_prefetch(next + row * kPositions, 0, 3);
  __builtin_prefetch(next + row * kPositions + kPositions / 2, 0, 3);
}

// Scores of kHeads queries at positions [at, at + 16 kWide) of a block, -inf where they are not in [begin, end); tops: the
// highest so far. next: as many halves as keys, for which memory is asked meanwhile.
template <int kWide, int kHeads, class T>
PARETOBIT_INLINE void score_some(size_t head_dim, const T* keys, const float* q, size_t at, size_t begin, size_t end,
                                 const uint16_t* next, float scores[][kPositions], Lanes* tops) {
  constexpr float kNone = -__builtin_inff();
  const float numbers[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  Lanes sum[kWide][kHeads];
  for (auto& sums : sum)
    for (Lanes& s : sums) s = all(0.0f);
  for (size_t c = 0; c < head_dim; ++c) {
    if (kWide > 1) ask_for(next, c);
    for (size_t v = 0; v < kWide; ++v) {
      const Lanes k = load_wide(keys + c * kPositions + at + 16 * v);
      for (int h = 0; h < kHeads; ++h) sum[v][h] = sum[v][h] + all(q[size_t(h) * head_dim + c]) * k;
    }
  }
  for (size_t v = 0; v < kWide; ++v) {
    const Lanes position = load(numbers) + all(float(at + 16 * v));
    const Mask early = position < all(float(begin)), seen = position < all(float(end));
    for (int h = 0; h < kHeads; ++h) {
      const Lanes s = choose(early, all(kNone), choose(seen, sum[v][h], all(kNone)));
      tops[h] = most(tops[h], s);
      store(scores[h] + at + 16 * v, s);
    }
  }
}

// Registers of positions, or of channels, that kHeads queries meet at once: rows of a block whole, as memory likes to be read,
// where there are registers for their sums.
constexpr int kAbreast = PARETOBIT_WIDTH == 16 ? 4 : 1;

// Scores of kHeads queries at the block's positions [begin, end), -inf around them; the highest of each.
template <class T, int kHeads>
PARETOBIT_INLINE void score(const AttendArgs& a, const T* keys, const float* q, size_t begin, size_t end,
                            const uint16_t* next, float scores[][kPositions], float* top) {
  Lanes tops[kHeads];
  for (int h = 0; h < kHeads; ++h) tops[h] = all(-__builtin_inff());
  for (size_t at = begin / 16 * 16; at < end;) {
    if (kAbreast > 1 && at % (16 * kAbreast) == 0 && end > at + 16) {
      score_some<kAbreast, kHeads>(a.head_dim, keys, q, at, begin, end, next, scores, tops);
      at += 16 * kAbreast;
    } else {
      score_some<1, kHeads>(a.head_dim, keys, q, at, begin, end, next, scores, tops);
      at += 16;
    }
  }
  for (int h = 0; h < kHeads; ++h) top[h] = highest(tops[h]);
}

// From scores to weights, in place, and their sum; what was summed before is made relative to the new
// maximum. Apart from the loops that call it, which it would make twice as long.
PARETOBIT_APART void weigh(float* state, float top, size_t width, size_t begin, size_t end, float* scores) {
  Lanes sum = load(state + kSum);
  if (state[0] < top) {
    const Lanes factor = exponential(all(state[0] - top));
    sum = sum * factor;
    for (size_t c = 0; c < width; c += 16) store(state + kValues + c, load(state + kValues + c) * factor);
    state[0] = top;
  }
  for (size_t at = begin / 16 * 16; at < end; at += 16) {
    const Lanes weight = exponential(load(scores + at) - all(state[0]));
    store(scores + at, weight);
    sum = sum + weight;
  }
  store(state + kSum, sum);
}

// Values of positions [begin, end), kWide registers of channels from c on, added by kHeads queries' weights to their states.
template <int kHeads, int kWide, class T>
PARETOBIT_INLINE void add_values(const T* values, size_t width, size_t c, const float scores[][kPositions], size_t begin,
                                 size_t end, const uint16_t* next, float* sums, size_t stride) {
  Lanes sum[kHeads][kWide];
  for (int h = 0; h < kHeads; ++h)
    for (int i = 0; i < kWide; ++i) sum[h][i] = load(sums + size_t(h) * stride + c + 16 * i);
  for (size_t p = begin; p < end; ++p) {
    if (kWide > 1) ask_for(next, c / (16 * kWide) * kPositions + p);
    for (int i = 0; i < kWide; ++i) {
      const Lanes v = load_wide(values + p * width + c + 16 * i);
      for (int h = 0; h < kHeads; ++h) sum[h][i] = sum[h][i] + all(scores[h][p]) * v;
    }
  }
  for (int h = 0; h < kHeads; ++h)
    for (int i = 0; i < kWide; ++i) store(sums + size_t(h) * stride + c + 16 * i, sum[h][i]);
}

// What is read next: while a block's scores are computed, and while its values are added up.
struct Next {
  const uint16_t *scoring, *adding;
};

// kHeads queries of one token meet the block's positions [begin, end).
template <int kHeads, class T>
void attend_block(const AttendArgs& a, const T* keys, const T* values, const float* q, size_t begin,
                  size_t end, const Next& next, float* states) {
  const size_t width = a.width, stride = kValues + width;
  float scores[kHeads][kPositions], top[kHeads];
  score<T, kHeads>(a, keys, q, begin, end, next.scoring, scores, top);
  for (int h = 0; h < kHeads; ++h) weigh(states + size_t(h) * stride, top[h], width, begin, end, scores[h]);
  size_t c = 0;
  for (; c + 16 * kAbreast <= width; c += 16 * kAbreast)
    add_values<kHeads, kAbreast>(values, width, c, scores, begin, end, next.adding, states + kValues, stride);
  for (; c < width; c += 16)
    add_values<kHeads, 1>(values, width, c, scores, begin, end, next.adding, states + kValues, stride);
}

template <class T>
void attend_heads(size_t heads, const AttendArgs& a, const T* keys, const T* values, const float* q,
                  size_t begin, size_t end, const Next& next, float* states) {
  switch (heads) {
    case 1: return attend_block<1>(a, keys, values, q, begin, end, next, states);
    case 2: return attend_block<2>(a, keys, values, q, begin, end, next, states);
    case 3: return attend_block<3>(a, keys, values, q, begin, end, next, states);
    default: return attend_block<4>(a, keys, values, q, begin, end, next, states);
  }
}

// ---- the same on codes: a block's keys and values are matrices, queries and weights the vectors that they multiply

// Vectors laid out for the columns of one matrix, as numbers or in int8.
struct Ready {
  bool int8;
  float* values;  // (kQueries, padded); codes, which need no more, take their place
  float scales[(kQueries + kAtOnce) * (kMostCodedHead / 64)];
  int32_t sums[(kQueries + kAtOnce) * (kMostCodedHead / 64)];

  Ready(bool eight_bits, float* room) : int8(eight_bits), values(room) {}
  int8_t* codes() const { return reinterpret_cast<int8_t*>(values); }
  PARETOBIT_APART void put(const Layout& l, size_t i, const float* x) {
    if (int8)
      quantize(l, x, codes() + i * l.token_bytes, scales + i, sums + i, kQueries);
    else
      spread(l, x, values + i * l.padded);
  }
  Inputs get(const Layout& l, size_t first, size_t last) const {
    if (!int8) return {last - first, values + first * l.padded};
    return {last - first, nullptr, codes() + first * l.token_bytes, scales + first, sums + first, kQueries};
  }
};

PARETOBIT_INLINE const float* query(const AttendArgs& a, size_t i) {
  return a.q + i / a.group * a.q_stride + i % a.group * a.head_dim;
}

PARETOBIT_INLINE size_t oldest(const AttendArgs& a, size_t position) {
  return position < a.window ? 0 : position + 1 - a.window;
}

PARETOBIT_APART Lanes some_halves(const uint16_t* from, size_t count) {
  if (count >= 16) return from_half(from);
  uint16_t rest[16] = {};
  std::memcpy(rest, from, count * sizeof *rest);
  return from_half(rest);
}

// out = q times the scales of the channels; out is another array, of whole lanes.
void fold_scales(const float* q, const uint16_t* scales, size_t d, float* out) {
  for (size_t k = 0; k < d; k += 16) store(out + k, load_some(q + k, d - k) * some_halves(scales + k, d - k));
}

float meet_centres(const float* q, const uint16_t* centres, size_t d) {
  Lanes sum = all(0.0f);
  for (size_t k = 0; k < d; k += 16) sum = sum + load_some(q + k, d - k) * some_halves(centres + k, d - k);
  return tree_sum(sum);
}

// Queries [from, to) meet a block of codes, whose every position lies before their tokens'; queries count from `first`
// in `queries` and `states`.
void attend_codes(const AttendArgs& a, size_t block, size_t first, size_t from, size_t to, Ready& queries, Ready& weights,
                  float* scores, float* states) {
  const Coded& c = *a.coded;
  const size_t d = a.head_dim, stride = kValues + a.width, start = block * kPositions;
  const uint8_t* at = a.codes[block - 1] + a.codes_offset;
  if ((block + a.recent + 2) * kPositions <= a.position)  // the next one is read as codes too
    for (size_t line = 0; line < c.bytes; line += 64) __builtin_prefetch(a.codes[block] + a.codes_offset + line);
  const auto* key_scales = reinterpret_cast<const uint16_t*>(at + c.key_scales);
  const auto* key_centres = reinterpret_cast<const uint16_t*>(at + c.key_centres);
  const auto* value_scales = reinterpret_cast<const uint16_t*>(at + c.value_scales);
  float folded[kMostCodedHead + 16], *products = scores + kQueries * kPositions;
  for (size_t i = from; c.by_channel && i < to; ++i) {
    fold_scales(query(a, i), key_scales, d, folded);
    queries.put(c.keys, i - first, folded);
  }
  const Matrix keys{c.keys, at, c.by_channel ? c.ones.data() : key_scales, nullptr, c.levels - 1};
  multiply(keys, queries.get(c.keys, from - first, to - first), 0, c.keys.tiles, scores, kPositions);
  for (size_t i = from; i < to; ++i) {
    const size_t seen = oldest(a, a.position + i / a.group);
    float* own = scores + (i - from) * kPositions;
    const Lanes centre = all(meet_centres(query(a, i), key_centres, d));
    Lanes top = all(-__builtin_inff());
    for (size_t p = 0; p < kPositions; p += 16) store(own + p, load(own + p) + centre);
    for (size_t p = start; p < seen; ++p) own[p - start] = -__builtin_inff();
    for (size_t p = 0; p < kPositions; p += 16) top = most(top, load(own + p));
    weigh(states + (i - first) * stride, highest(top), a.width, 0, kPositions, own);
    for (size_t p = 0; p < kPositions; p += 16) store(own + p, load(own + p) * from_half(value_scales + p));
    weights.put(c.values, i - from, own);
  }
  const Matrix values{c.values, at + c.value_codes, c.ones.data(), nullptr, c.levels - 1};
  multiply(values, weights.get(c.values, 0, to - from), 0, c.values.tiles, products, d);
  for (size_t i = from; i < to; ++i) {
    float *sum = states + (i - first) * stride + kValues, *product = products + (i - from) * d;
    for (size_t k = 0; k < d; k += 16) store(sum + k, load(sum + k) + load_some(product + k, d - k));
  }
}

// At most kQueries queries, block by block. Where several tokens or many heads read a block, it is widened
// once.
void attend_some(const AttendArgs& a, size_t first, size_t last) {
  constexpr size_t kTogether = 4;
  const size_t width = a.width, stride = kValues + width, keys_size = a.head_dim * kPositions;
  float* wide = a.scratch;
  float* states = a.scratch + keys_size + kPositions * width;
  Ready queries(a.int8, states + kQueries * stride), weights(a.int8, queries.values + kQueries * width);
  float* scores = weights.values + kQueries * kPositions;
  for (size_t i = 0; i < last - first; ++i) {
    std::memset(states + i * stride, 0, stride * sizeof(float));
    states[i * stride] = -__builtin_inff();
  }
  if (a.coded && !a.coded->by_channel)
    for (size_t i = first; i < last; ++i) queries.put(a.coded->keys, i - first, query(a, i));
  const size_t newest = a.position + (last - 1) / a.group;
  for (size_t block = oldest(a, a.position + first / a.group) / kPositions; block <= newest / kPositions;
       ++block) {
    const size_t start = block * kPositions;
    size_t halves = last;  // the first query that reads the block as codes
    if (a.coded && block) {
      // Of the tokens that position `at` and those before it belong to, the queries.
      const auto before = [&](size_t at) {
        return std::min(last, std::max(first, at > a.position ? (at - a.position) * a.group : 0));
      };
      halves = before((block + a.recent + 1) * kPositions);
      const size_t end = before(start + kPositions - 1 + a.window);
      if (halves < end) attend_codes(a, block, first, halves, end, queries, weights, scores, states);
      if (halves == first) continue;
    }
    const uint16_t* keys = a.blocks[block] + a.offset;
    const uint16_t* values = keys + keys_size;
    const bool widened = halves - first > kTogether;
    const uint16_t* after = block < newest / kPositions ? a.blocks[block + 1] : nullptr;
    after = after ? after + a.offset : keys;  // none where it is read as codes
    Next next = widened ? Next{after, after + keys_size} : Next{values, after};  // for the first queries alone
    const uint16_t* here = widened ? reinterpret_cast<const uint16_t*>(wide) : keys;
    if (widened) {
      const size_t seen = keys_size + std::min(newest + 1 - start, kPositions) * width;
      for (size_t i = 0; i < seen; i += 16) store(wide + i, from_half(keys + i));
    }
    for (size_t i = first, heads; i < halves; i += heads) {
      const size_t position = a.position + i / a.group;
      heads = std::min({kTogether, halves - i, a.group - i % a.group});
      const size_t begin = std::max(oldest(a, position), start),
                   end = std::min(position + 1, start + kPositions);
      if (begin >= end) continue;
      float* state = states + (i - first) * stride;
      if (widened)
        attend_heads(heads, a, wide, wide + keys_size, query(a, i), begin - start, end - start, next, state);
      else
        attend_heads(heads, a, keys, values, query(a, i), begin - start, end - start, next, state);
      next = {here, here};
    }
  }
  for (size_t i = first; i < last; ++i) {
    const float* state = states + (i - first) * stride;
    const Lanes sum = all(tree_sum(load(state + kSum)));
    float* out = a.out + i / a.group * a.out_stride + i % a.group * a.head_dim;
    for (size_t c = 0; c < a.head_dim; c += 16)
      store_some(out + c, load(state + kValues + c) / sum, a.head_dim - c);
  }
}

void attend(const AttendArgs& a, size_t first, size_t last) {
  for (; first < last; first += kQueries) attend_some(a, first, std::min(last, first + kQueries));
}
