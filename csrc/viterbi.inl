// Codes on the trellis grid: for each ring (64 rows of a column) a Viterbi search for the path with the least weighted
// squared error, inside GPTQ's column loop. The definition is `encode` in paretobit/trellis.py; operations and their order
// are the same. A state is the window less what will be its oldest bits, as many as the next code has; lanes are
// neighbouring states. Included once per ISA.

constexpr int kWindows = 256, kRing = int(kTrellisTile), kRingSets = 4, kRingLanes = 16;
constexpr float kForbidden = 1e30f;  // the cost of what may not be

// Row of a tile that stands at a place of its ring.
constexpr int ring_row(int place) { return place % kRingSets * kRingLanes + place / kRingSets; }

template <int kTwice>
struct Search {
  static constexpr int kWide = code_bits(kTwice, 0), kNarrow = code_bits(kTwice, 1);  // every other code
  static constexpr int kStates = kWindows >> kWide, kMost = kWindows >> kNarrow;      // where the ring begins; at most
  float value[kWindows];
  float cost[2][kMost + 16];     // of the best path to each state; `repeat` reads past the end
  float oldest[kRing][kMost];    // what left the window on the way to each state

  explicit Search(const uint8_t* table) {
    for (int w = 0; w < kWindows; ++w) value[w] = float(table[w & 15] + table[16 + (w >> 4)]) - 63.5f;
    std::fill(&cost[0][0], &cost[0][0] + 2 * (kMost + 16), 0.0f);
  }

  // One row on, whose code has kBits, the next one's kNext: x in levels from zero, and its weight.
  template <bool kKeep, int kBits, int kNext>
  PARETOBIT_MEMBER void step(float x, float weight, const float* from, float* to, float* left) {
    constexpr int kAfter = kWindows >> kNext;
    const Lanes target = all(x), factor = all(weight);
    for (int s = 0; s < kAfter; s += 16) {
      Lanes best, code;
#pragma GCC unroll 16
      for (int o = 0; o < 1 << kNext; ++o) {
        const int window = o * kAfter + s;
        const Lanes miss = target - load(value + window);
        const Lanes total = repeat<kBits>(from + (window >> kBits)) + miss * miss * factor;
        if (o == 0) {
          best = total, code = all(0.0f);
        } else {
          const Mask less = total < best;
          best = choose(less, total, best);
          if (kKeep) code = choose(less, all(float(o)), code);
        }
      }
      store(to + s, best);
      if (kKeep) store(left + s, code);
    }
  }

  // The same at place p, and no code but 0 for a row that is padding.
  template <bool kKeep, int kBits, int kNext>
  PARETOBIT_MEMBER void step_at(int p, const float* x, const float* weight, int rows) {
    float* to = cost[1 - p % 2];
    step<kKeep, kBits, kNext>(x[p], weight[p], cost[p % 2], to, oldest[p]);
    if (ring_row(p) >= rows)
      for (int s = 0; s < kWindows >> kNext; ++s) to[s] += s % (1 << kBits) ? kForbidden : 0.0f;
  }

  // Once around from the costs in cost[0], which then holds the costs at the end. rows: those that are no padding.
  template <bool kKeep>
  void turn(const float* x, const float* weight, int rows) {
    for (int p = 0; p < kRing; p += 2) {
      step_at<kKeep, kWide, kNarrow>(p, x, weight, rows);
      step_at<kKeep, kNarrow, kWide>(p + 1, x, weight, rows);
    }
  }

  // Back along the path that ends in `state`; returns the state in which it starts.
  int trace(int state, uint8_t* codes) const {
    for (int p = kRing - 1; p >= 0; --p) {
      const int bits = code_bits(kTwice, p);
      codes[p] = uint8_t(state % (1 << bits));
      state = ((int(oldest[p][state]) * kWindows >> code_bits(kTwice, p + 1)) + state) >> bits;
    }
    return state;
  }

  // Codes of one ring; x and weight in the ring's order, 0 for padding.
  void run(const float* x, const float* weight, int rows, uint8_t* codes) {
    std::fill(cost[0], cost[0] + kStates, 0.0f);
    turn<false>(x, weight, rows);
    turn<true>(x, weight, rows);
    const int last = int(std::min_element(cost[0], cost[0] + kStates) - cost[0]);
    const int close = trace(last, codes);
    std::fill(cost[0], cost[0] + kStates, kForbidden);
    cost[0][close] = 0.0f;
    turn<true>(x, weight, rows);
    trace(close, codes);
  }
};

// One tile's part of a block of columns, columns first: it fits into the first cache level.
struct TileColumns {
  float rest[kMostTrellisBlock][kRing];
  float scale[kRing], weight[kRing];
};

template <int kTwice>
void trellis_tile(const TrellisArgs& a, size_t tile, Search<kTwice>& search, TileColumns& t) {
  const size_t first = tile * kRing;
  const int rows = int(std::min<size_t>(kRing, a.rows - first));
  size_t row_of[kRing];
  for (int p = 0; p < kRing; ++p) {
    const bool real = ring_row(p) < rows;
    row_of[p] = first + size_t(real ? ring_row(p) : 0);
    t.scale[p] = real ? a.scale[row_of[p]] : 0.0f;
    t.weight[p] = real ? a.weight[row_of[p]] : 0.0f;
    for (size_t j = 0; j < a.count; ++j) t.rest[j][p] = real ? a.rest[row_of[p] * a.width + a.start + j] : 0.0f;
  }
  uint8_t codes[kRing];
  float x[kRing], error[kRing];
  for (size_t j = 0; j < a.count; ++j) {
    float* here = t.rest[j];
    for (int p = 0; p < kRing; ++p) x[p] = here[p] / (t.scale[p] == 0.0f ? 1.0f : t.scale[p]);
    search.run(x, t.weight, rows, codes);
    const float* upper = a.upper ? a.upper + j * a.count : nullptr;
    unsigned window = 0;
    for (int p = kRing - 8; p < kRing; ++p) window = window << code_bits(kTwice, p) | codes[p];
    for (int p = 0; p < kRing; ++p) {
      window = (window << code_bits(kTwice, p) | codes[p]) % kWindows;
      error[p] = here[p] - t.scale[p] * search.value[window];
      if (upper) error[p] = error[p] / upper[j];
      if (ring_row(p) >= rows) continue;
      const size_t row = row_of[p];
      a.codes[row * a.width + a.start + j] = codes[p];
      if (a.errors) a.errors[row * a.count + j] = error[p];
      if (a.moved) a.moved[row * a.count + j] = here[p];
    }
    if (!upper) continue;
    const float* pull = a.pull ? a.pull + j * a.count : nullptr;
    for (size_t k = j + 1; k < a.count; ++k) {
      const Lanes factor = all(upper[k]), towards = all(pull ? pull[k] : 0.0f);
      for (int p = 0; p < kRing; p += 16) {
        Lanes r = load(t.rest[k] + p);
        if (pull) r = r + towards * load(here + p);
        store(t.rest[k] + p, r - factor * load(error + p));
      }
    }
  }
}

template <int kTwice>
void trellis_tiles(const TrellisArgs& a, size_t first, size_t last) {
  const auto search = std::make_unique<Search<kTwice>>(a.table);
  const auto columns = std::make_unique<TileColumns>();
  for (size_t tile = first; tile < last; ++tile) trellis_tile<kTwice>(a, tile, *search, *columns);
}

void trellis(const TrellisArgs& a, size_t first, size_t last) {
  switch (a.twice_bits) {
    case 2: return trellis_tiles<2>(a, first, last);
    case 3: return trellis_tiles<3>(a, first, last);
    case 4: return trellis_tiles<4>(a, first, last);
    case 5: return trellis_tiles<5>(a, first, last);
    case 6: return trellis_tiles<6>(a, first, last);
    case 7: return trellis_tiles<7>(a, first, last);
    default: return trellis_tiles<8>(a, first, last);
  }
}
