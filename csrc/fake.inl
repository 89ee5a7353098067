// Fake quantization, of which paretobit/compress/methods/paretoq.py is the definition: one pass over the weights where
// that takes one for every operation. Included once per ISA by dispatch.cpp.

// Calls use(first of its numbers, count, first of its scales) for every group of these rows.
template <class Use>
PARETOBIT_INLINE void for_groups(const FakeArgs& a, size_t first, size_t last, Use&& use) {
  const size_t groups = (a.columns - 1) / a.group + 1;
  for (size_t r = first; r < last; ++r)
    for (size_t g = 0, start = 0; g < groups; ++g, start += a.group)
      use(r * a.columns + start, std::min(a.group, a.columns - start), r * groups + g);
}

template <bool kHalf>
static void fake_rows(const FakeArgs& a, size_t first, size_t last) {
  const Lanes lowest = all(a.lowest), highest = all(a.highest);
  for_groups(a, first, last, [&](size_t at, size_t count, size_t group) PARETOBIT_LAMBDA {
    const Lanes scale = all(a.scale[group]);
    for (size_t i = 0; i < count; i += 16) {
      const Lanes level = grid_point<kHalf>(load_some(a.w + at + i, count - i) / scale, lowest, highest);
      store_some(a.out + at + i, level * scale, count - i);
    }
  });
}

template <bool kHalf>
static void fake_gradient_rows(const FakeGradientArgs& a, size_t first, size_t last) {
  const FakeArgs& f = a.forward;
  const Lanes none = all(0.0f), lowest = all(f.lowest), highest = all(f.highest), low = all(a.low), high = all(a.high);
  const Lanes under = all(a.under), over = all(a.over), by_level = all(a.by_level), by_step = all(a.by_step);
  for_groups(f, first, last, [&](size_t at, size_t count, size_t group) PARETOBIT_LAMBDA {
    const Lanes scale = all(f.scale[group]);
    Lanes sum = none;
    for (size_t i = 0; i < count; i += 16) {
      const Lanes u = load_some(f.w + at + i, count - i) / scale, upstream = load_some(a.upstream + at + i, count - i);
      const Lanes inside = grid_point<kHalf>(u, lowest, highest) * by_level - u * by_step;
      const Mask below = u < low, above = high < u;
      sum = sum + choose(below, under, choose(above, over, inside)) * upstream;
      store_some(f.out + at + i, choose(below, none, choose(above, none, upstream)), count - i);
    }
    a.to_scale[group] = tree_sum(sum);
  });
}

static bool ends_in_half(const FakeArgs& a) { return a.lowest != std::nearbyint(a.lowest); }

void fake(const FakeArgs& a, size_t first, size_t last) {
  ends_in_half(a) ? fake_rows<true>(a, first, last) : fake_rows<false>(a, first, last);
}

void fake_gradients(const FakeGradientArgs& a, size_t first, size_t last) {
  ends_in_half(a.forward) ? fake_gradient_rows<true>(a, first, last) : fake_gradient_rows<false>(a, first, last);
}
