// Activations as the kernels read them, and single rows of a matrix; included once per ISA after multiply.inl.

// The walk over a row's blocks in both column orders: visit(first column, columns, first padded column, padded columns).
template <class Visit>
PARETOBIT_INLINE void each_span(const Layout& l, Visit&& visit) {
  each_block(l, [&](size_t g, size_t units, size_t unit, size_t block) PARETOBIT_LAMBDA {
    const size_t column = g * l.group + (unit - g * l.group_units) * l.unit;
    const size_t end = std::min({column + units * l.unit, (g + 1) * l.group, l.columns});
    visit(column, end - column, unit * l.unit, units * l.unit, block);
  });
}

// All lanes in one, by halves.
template <class Join>
PARETOBIT_INLINE int32_t fold(const Ints& a, Join&& join) {
  int32_t lane[16];
  std::memcpy(lane, &a, sizeof lane);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] = join(lane[i], lane[i + half]);
  return lane[0];
}

void quantize(const Layout& l, const float* x, int8_t* codes, float* scales, int32_t* sums, size_t step) {
  each_span(l, [&](size_t column, size_t count, size_t padded, size_t width, size_t block) PARETOBIT_LAMBDA {
    // Compared as integers, so that NaN counts as the largest and comes out again.
    Ints most = all(0);
    for (size_t i = 0; i < count; i += 16) {
      const Lanes v = load_some(x + column + i, count - i);
      PARETOBIT_EACH {
        const Integers size = (Integers)v.part[p] & INT32_MAX;
        most.part[p] = most.part[p] > size ? most.part[p] : size;
      }
    }
    const int32_t bits = fold(most, [](int32_t a, int32_t b) PARETOBIT_LAMBDA { return a < b ? b : a; });
    float largest;
    std::memcpy(&largest, &bits, 4);
    if (largest < 0x1p-100f) largest = 0.0f;  // 127 / largest would not be finite
    scales[block * step] = largest / 127.0f;
    const float inverse = largest == 0.0f ? 0.0f : 127.0f / largest;
    Ints sum = all(0);
    for (size_t i = 0; i < width; i += 16) {
      // The low byte of 1.5 · 2^23 + x is x rounded to nearest, ties to even; codes past the block's end are 0.
      const Lanes v = i < count ? load_some(x + column + i, count - i) : all(0.0f);
      const Lanes near = v * all(inverse) + all(12582912.0f);
      int32_t wide[16];
      PARETOBIT_EACH {
        const Integers low = (Integers)near.part[p] << 24 >> 24;
        sum.part[p] += low;
        std::memcpy(wide + p * PARETOBIT_WIDTH, &low, sizeof low);
      }
      int8_t code[16];
      for (int lane = 0; lane < 16; ++lane) code[lane] = int8_t(wide[lane]);
      if (width - i >= 16)  // a size that the compiler knows: one store, not a call
        std::memcpy(codes + padded + i, code, 16);
      else
        std::memcpy(codes + padded + i, code, width - i);
    }
    sums[block * step] = fold(sum, [](int32_t a, int32_t b) PARETOBIT_LAMBDA { return a + b; });
  });
}

void spread(const Layout& l, const float* x, float* values) {
  if (is_float(l.format)) {
    std::memcpy(values, x, l.columns * sizeof(float));
    return;
  }
  each_span(l, [&](size_t column, size_t count, size_t padded, size_t width, size_t) PARETOBIT_LAMBDA {
    std::memcpy(values + padded, x + column, count * sizeof(float));
    std::memset(values + padded + count, 0, (width - count) * sizeof(float));
  });
}

template <Format kFormat>
void row_as(const Matrix& m, size_t row, float* out) {
  const Layout& l = m.layout;
  constexpr int kSets = tile_sets(kFormat);
  const size_t tile = row / l.tile, lane = row % kSet;
  const int set = int(row % l.tile / kSet);
  const auto table = load_table<kFormat>(m);
  Bytes planes[kMostQuads][kSets];
  each_span(l, [&](size_t column, size_t count, size_t padded, size_t width, size_t) PARETOBIT_LAMBDA {
    const auto group = load_group<kFormat>(m, tile, column / l.group);
    const size_t unit = padded / l.unit;
    unpack_block<kFormat>(m.codes + tile * l.tile_bytes + unit * unit_vectors(kFormat) * kVector, width / l.unit, table,
                          planes);
    float scale[16], zero[16];
    store(scale, group.scale[set]);
    store(zero, group.zero[set]);
    for (size_t i = 0; i < count; ++i) {
      uint8_t code[64];
      std::memcpy(code, &planes[i / 4][set], 64);
      out[column + i] = scale[lane] * (float(code[4 * lane + i % 4]) - zero[lane]);
    }
  });
}

template <Format kFormat>
void float_row(const Matrix& m, size_t index, float* out) {
  const size_t columns = m.layout.columns, bytes = float_bytes(kFormat);
  const uint8_t* from = m.codes + index * columns * bytes;
  size_t c = 0;
  for (; c + 16 <= columns; c += 16) store(out + c, load_floats<kFormat>(from + c * bytes));
  float rest[16];
  store(rest, load_some_floats<kFormat>(from + c * bytes, columns - c));
  std::memcpy(out + c, rest, (columns - c) * sizeof(float));
}

void row(const Matrix& m, size_t index, float* out) {
  with_format(m.layout.format, [&](auto format) {
    constexpr Format kFormat = decltype(format)::value;
    if constexpr (is_float(kFormat))
      float_row<kFormat>(m, index, out);
    else
      row_as<kFormat>(m, index, out);
  });
}
