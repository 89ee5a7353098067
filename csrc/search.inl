// The scale search of paretobit/scales.py, in the same order of operations. Included once per ISA by
// dispatch.cpp. The sixteen lanes are sixteen candidates; each adds up its own error over the group's
// weights, first to last.

struct Candidates {
  Lanes scale, zero, error;
};
struct Moments {
  Lanes wc, cc;  // sums of h*w*c and h*c*c: their quotient is the best scale for these codes
};
struct Group {
  const float* w;
  const float* h;  // importance, or null for all ones
  size_t n;
  float top;  // levels - 1
};

// What a weight becomes, in steps: the grid point nearest to x; NaN stays. Grids of half steps (kHalf) have no point at 0.
template <bool kHalf>
PARETOBIT_INLINE Lanes grid_point(const Lanes& x, const Lanes& low, const Lanes& high) {
  const Lanes inside = least(high, most(low, x));
  return kHalf ? nearest(inside - all(0.5f)) + all(0.5f) : nearest(inside);
}

template <bool kHalf, bool kWeighted, bool kMoments>
PARETOBIT_INLINE void sweep(const Group& group, Candidates& c, Moments& moments) {
  const Lanes none = all(0.0f), scale = c.scale;
  Lanes inverse = all(1.0f) / scale;
  inverse = choose(none < scale * scale, inverse, none);
  const Lanes low = none - c.zero, high = all(group.top) - c.zero;
  Lanes error = none, wc = none, cc = none;
  for (size_t i = 0; i < group.n; ++i) {
    const Lanes w = all(group.w[i]);
    const Lanes point = grid_point<kHalf>(w * inverse, low, high);
    const Lanes miss = w - scale * point;
    if (kWeighted) {
      const Lanes h = all(group.h[i]);
      error = error + (h * miss) * miss;
      if (kMoments) wc = wc + (h * w) * point, cc = cc + (h * point) * point;
    } else {
      error = error + miss * miss;
      if (kMoments) wc = wc + w * point, cc = cc + point * point;
    }
  }
  c.error = error;
  if (kMoments) moments.wc = wc, moments.cc = cc;
}

// In each lane the better of two candidates; the first where they are equal.
PARETOBIT_INLINE Candidates better(const Candidates& a, const Candidates& b) {
  const Mask lower = b.error < a.error;
  return {choose(lower, b.scale, a.scale), choose(lower, b.zero, a.zero), choose(lower, b.error, a.error)};
}

struct Found {
  float scale, zero, error;
};

// The lane with the least error; the first among equals.
PARETOBIT_INLINE Found best_lane(const Candidates& c) {
  float scale[16], zero[16], error[16];
  store(scale, c.scale), store(zero, c.zero), store(error, c.error);
  int best = 0;
  for (int l = 1; l < 16; ++l)
    if (error[l] < error[best]) best = l;
  return {scale[best], zero[best], error[best]};
}

// In each lane: least-squares scale for the codes it chose, new codes for that scale, kept where the error
// falls.
template <bool kHalf, bool kWeighted>
PARETOBIT_INLINE Candidates refit(const Group& group, const Lanes& scale, const Lanes& zero, int rounds) {
  Candidates trial{scale, zero, zero};
  Moments moments;
  sweep<kHalf, kWeighted, true>(group, trial, moments);
  Candidates best = trial;
  for (int round = 0; round < rounds; ++round) {
    const Lanes fitted = moments.wc / moments.cc;
    trial.scale = to_half_grid(choose(all(0.0f) < fitted * best.scale, fitted, best.scale));
    sweep<kHalf, kWeighted, true>(group, trial, moments);
    best = better(best, trial);
  }
  return best;
}

// The zero points and signs worth trying, in order, and the scale at which the group's range just fits.
struct Trials {
  float zero[kZeros], sign[kZeros], fit;
  int count;
};

static Trials trials_of(const SearchArgs& a, const Group& group) {
  float low = 0.0f, high = 0.0f;
  for (size_t i = 0; i < group.n; ++i) {
    low = group.w[i] < low ? group.w[i] : low;
    high = high < group.w[i] ? group.w[i] : high;
  }
  Trials t{};
  if (a.kind == kStored) {
    t.fit = (high - low) / group.top;
    const float centre = t.fit > 0.0f ? float(int(-low / t.fit + 0.5f)) : 0.0f;
    t.count = group.top + 1.0f < kZeros ? int(group.top) + 1 : kZeros;
    float first = centre - float(kZeros / 2);
    first = first < group.top + 1.0f - float(t.count) ? first : group.top + 1.0f - float(t.count);
    first = 0.0f < first ? first : 0.0f;
    for (int v = 0; v < t.count; ++v) t.zero[v] = first + float(v), t.sign[v] = 1.0f;
  } else {
    const float largest = high < -low ? -low : high;
    t.fit = largest / (a.kind == kMid ? a.offset : a.offset - 0.5f);
    t.count = a.kind == kMid ? 1 : 2;
    for (int v = 0; v < t.count; ++v) t.zero[v] = a.offset, t.sign[v] = v ? -1.0f : 1.0f;
  }
  return t;
}

template <bool kHalf, bool kWeighted>
static Found search_group(const SearchArgs& a, const Group& group) {
  const Trials t = trials_of(a, group);
  Candidates best;
  Moments unused;
  for (int v = 0; v < t.count; ++v)
    for (size_t k = 0; k < a.coarse_count; k += 16) {
      Candidates c;
      c.scale = to_half_grid(all(t.fit) * load(a.coarse + k)) * all(t.sign[v]);
      c.zero = all(t.zero[v]);
      sweep<kHalf, kWeighted, false>(group, c, unused);
      best = v + k == 0 ? c : better(best, c);
    }
  const Found first = best_lane(refit<kHalf, kWeighted>(group, best.scale, best.zero, 2));
  const Lanes near = to_half_grid(all(first.scale) * load(a.fine));
  const Found second = best_lane(refit<kHalf, kWeighted>(group, near, all(first.zero), 1));
  return second.error < first.error ? second : first;
}

static void search_rows(const SearchArgs& a, size_t first, size_t last) {
  const size_t groups = (a.columns - 1) / a.group + 1;
  const bool half = a.kind == kMid && a.levels % 2 == 0;
  for (size_t r = first; r < last; ++r)
    for (size_t g = 0; g < groups; ++g) {
      const size_t start = g * a.group;
      const Group group{a.w + r * a.columns + start, a.importance ? a.importance + start : nullptr,
                        a.columns - start < a.group ? a.columns - start : a.group, float(a.levels - 1)};
      const Found found =
          half ? (group.h ? search_group<true, true>(a, group) : search_group<true, false>(a, group))
               : (group.h ? search_group<false, true>(a, group) : search_group<false, false>(a, group));
      const size_t at = r * groups + g;
      a.scale[at] = exact_half(found.scale);
      if (a.zero) a.zero[at] = uint8_t(found.zero);
      a.error[at] = found.error;
    }
}

// ---- rows of a key-value cache, as paretobit/kv.py rounds them

// Sixteen scales from the one at which the row's range just fits down to 3/8 of it; of equal errors the larger stays.
void round_rows(const RoundArgs& a) {
  const float steps[16] = {24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 9};
  const Lanes none = all(0.0f), zero = all(0.5f * float(a.levels - 1)), half = all(a.levels % 2 == 0 ? 0.5f : 0.0f);
  const auto point = [&](const Lanes& x) PARETOBIT_LAMBDA {
    return nearest(least(most(x, none - zero), zero) - half) + half;  // NaN becomes the lowest
  };
  for (size_t r = 0; r < a.rows; ++r) {
    const float* x = a.x + r * a.count;
    Lanes size = none;
    for (size_t i = 0; i < a.count; i += 16) {
      const Lanes v = load_some(x + i, a.count - i);
      size = most(size, most(v, none - v));
    }
    Candidates c{to_half_grid(all(highest(size)) / zero * (load(steps) / all(24.0f))), zero, none};
    const Lanes inverse = choose(none < c.scale * c.scale, all(1.0f) / c.scale, none);
    for (size_t i = 0; i < a.count; ++i) {
      const Lanes v = all(x[i]), miss = v - c.scale * point(v * inverse);
      c.error = c.error + miss * miss;
    }
    const float best = best_lane(c).scale;
    a.scale[r] = exact_half(best);
    const Lanes chosen = all(0.0f < best * best ? 1.0f / best : 0.0f);
    for (size_t i = 0; i < a.count; i += 16) {
      float code[16];
      store(code, point(load_some(x + i, a.count - i) * chosen) + zero);
      for (size_t k = i; k < std::min(i + 16, a.count); ++k) a.codes[r * a.row + k * a.step] = uint8_t(code[k - i]);
    }
  }
}
