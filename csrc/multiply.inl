// Packed rows times activations. Lanes are rows, so a row's sum runs over its columns in their order on every ISA:
// exact int32 sums over a block, then one multiply and one add a block in float. docs/FORMAT.md has the formulas.

// What turns a tile's codes of one group into numbers: scales and zero points of its rows.
template <int kSets>
struct TileGroup {
  Lanes scale[kSets], zero[kSets];
};

template <Format kFormat>
PARETOBIT_INLINE void load_zeros(const uint8_t* from, Lanes zero[2]) {
  if constexpr (zero_bytes(kFormat) == 8) {
    uint8_t fields[32];
    uint64_t eight;
    std::memcpy(&eight, from, 8);
    for (int k = 0; k < 4; ++k) {
      const uint64_t field = eight >> 2 * k & 0x0303030303030303u;
      std::memcpy(fields + 8 * k, &field, 8);
    }
    zero[0] = to_float(widen_bytes(fields)), zero[1] = to_float(widen_bytes(fields + 16));
  } else if constexpr (zero_bytes(kFormat) == 16) {
    const Ints both = widen_bytes(from);
    Ints low, high;
    PARETOBIT_EACH low.part[p] = both.part[p] & 15, high.part[p] = both.part[p] >> 4;
    zero[0] = to_float(low), zero[1] = to_float(high);
  } else {
    zero[0] = to_float(widen_bytes(from)), zero[1] = to_float(widen_bytes(from + 16));
  }
}

template <Format kFormat>
PARETOBIT_INLINE TileGroup<tile_sets(kFormat)> load_group(const Matrix& m, size_t tile, size_t group) {
  constexpr int kSets = tile_sets(kFormat);
  const size_t at = tile * m.layout.groups + group;
  TileGroup<kSets> r;
  for (int s = 0; s < kSets; ++s) r.scale[s] = from_half(m.scale + at * tile_rows(kFormat) + size_t(s) * kSet);
  for (Lanes& zero : r.zero) zero = all(0.5f * float(m.twice_zero));
  if constexpr (!is_trellis(kFormat))
    if (m.zero) load_zeros<kFormat>(m.zero + at * zero_bytes(kFormat), r.zero);
  return r;
}

// acc += Σ (code − zero) · activation · (scale · activation scale), for one set of 16 rows and one block: the sum is exact.
PARETOBIT_INLINE void add_block(Lanes& acc, const Ints& dots, const Lanes& scale, const Lanes& zero, float activation,
                                int32_t sum) {
  acc = acc + (to_float(dots) - zero * to_float(all(sum))) * (scale * all(activation));
}

// acc: kSets sets, `apart` from each other; rows: that there are from the tile's first on.
template <int kSets>
PARETOBIT_INLINE void store_rows(const Lanes* acc, size_t apart, size_t rows, float* out) {
  if (rows >= kSets * kSet) {
    for (size_t s = 0; s < kSets; ++s) store(out + s * kSet, acc[s * apart]);
  } else {
    float all_rows[kSets * kSet];
    for (size_t s = 0; s < kSets; ++s) store(all_rows + s * kSet, acc[s * apart]);
    std::memcpy(out, all_rows, rows * sizeof(float));
  }
}

// The walk over a row's groups and blocks: visit(group, units of the block, first unit of the row, index of the block).
template <class Visit>
PARETOBIT_INLINE void each_block(const Layout& l, Visit&& visit) {
  size_t block = 0, unit = 0;
  for (size_t g = 0; g < l.groups; ++g) {
    const size_t units = g + 1 < l.groups ? l.group_units : l.last_units;
    for (size_t u = 0; u < units; u += kBlockUnits, ++block) {
      const size_t count = std::min(kBlockUnits, units - u);
      visit(g, count, unit, block);
      unit += count;
    }
  }
}

// ---- one token: codes are used as they are unpacked

// Processors fetch ahead by themselves, but only within a page and only so far: the rest is asked for here, into the
// second cache level first, then into the first.
constexpr size_t kFar = 4096, kNear = 1024;  // bytes
constexpr size_t kGroupsAhead = 8;

PARETOBIT_INLINE void fetch_ahead(const uint8_t* codes, size_t bytes) {
  for (size_t at = 0; at < bytes; at += kVector) {
    __builtin_prefetch(codes + at + kFar, 0, 2);
    __builtin_prefetch(codes + at + kNear, 0, 3);
  }
}

template <Format kFormat>
PARETOBIT_INLINE void fetch_group_ahead(const Matrix& m, size_t tile, size_t group) {
  const size_t at = tile * m.layout.groups + group + kGroupsAhead;
  __builtin_prefetch(m.scale + at * tile_rows(kFormat), 0, 3);
  if (m.zero) __builtin_prefetch(m.zero + at * zero_bytes(kFormat), 0, 3);
}

// Products of `units` units of a block with the activations: dots of every stream's and set's rows. correction: the
// sum of the activations.
template <Format kFormat, size_t kStreams, int kSets>
PARETOBIT_INLINE void dot_block(const uint8_t* const* codes, const int8_t* activations, size_t units, NoTable,
                                int32_t correction, Ints (&dots)[kStreams][kSets]) {
  using Codes = Unit<kFormat>;
  constexpr int kTop = Codes::kTop;
  constexpr size_t kBytes = unit_vectors(kFormat) * kVector;
  constexpr size_t kSums = kStreams > 1 ? 1 : 2;  // by turns: a sum that waits for itself would be slow
  Sum sum[kStreams][kSums][kSets];
  for (auto& stream : sum)
    for (auto& turn : stream)
      for (Sum& set : turn) set = no_sum();
  const auto dot = [&](size_t u) PARETOBIT_LAMBDA {
    for (size_t i = 0; i < kStreams; ++i) {
      fetch_ahead(codes[i] + u * kBytes, kBytes);
      Codes unit(codes[i] + u * kBytes);
      Sum* own = sum[i][u % kSums];
      each_quad<0, kSets>(unit, [&](int quad, const Bytes* set) PARETOBIT_LAMBDA {
        const Quad four = load_quad(activations + u * unit_columns(kFormat) + 4 * quad);
        for (int s = 0; s < kSets; ++s) add_dot<kTop>(own[s], set[s], four);
        for (int s = 0; s < kSets; ++s) spill<kTop>(own[s], quad + 1);
      });
    }
  };
  if (units == kBlockUnits) {
#pragma GCC unroll 4
    for (size_t u = 0; u < kBlockUnits; ++u) dot(u);
  } else {
    for (size_t u = 0; u < units; ++u) dot(u);
  }
  for (size_t i = 0; i < kStreams; ++i) {
    for (int s = 0; s < kSets; ++s) {
      dots[i][s] = total<kTop>(sum[i][0][s], correction);
      if constexpr (kSums > 1) dots[i][s] = dots[i][s] + total<kTop>(sum[i][1][s], 0);
    }
  }
}

// The same of a trellis, one register's lanes after the other.
template <Format kFormat, size_t kStreams, int kSets>
PARETOBIT_INLINE void dot_block(const uint8_t* const* codes, const int8_t* activations, size_t units,
                                const Table& table, int32_t correction, Ints (&dots)[kStreams][kSets]) {
  constexpr int kTop = Unit<kFormat>::kTop;
  constexpr size_t kBytes = unit_vectors(kFormat) * kVector;
  for (int p = 0; p < kParts; ++p) {
    SumPart sum[kStreams][kSets];
    for (auto& stream : sum)
      for (SumPart& set : stream) set = no_sum_part();
    for (size_t u = 0; u < units; ++u) {
      for (size_t i = 0; i < kStreams; ++i) {
        const uint8_t* unit = codes[i] + u * kBytes;
        if (p == 0) fetch_ahead(unit, kBytes);
        each_ring_quad<kFormat, 0>(unit, p, table, [&](int quad, const Levels& level) PARETOBIT_LAMBDA {
          const Quad four = load_quad(activations + u * unit_columns(kFormat) + 4 * quad);
          for (int s = 0; s < kSets; ++s) add_dot<kTop>(sum[i][s], level.set[s], four);
        });
      }
    }
    for (size_t i = 0; i < kStreams; ++i)
      for (int s = 0; s < kSets; ++s) dots[i][s].part[p] = total<kTop>(sum[i][s], correction);
  }
}

// Rows of kStreams tiles, `apart` tiles from each other: as many streams that memory delivers at the same time.
template <Format kFormat, size_t kStreams, class TableOf>
PARETOBIT_INLINE void one_token_tiles(const Matrix& m, const Inputs& in, const TableOf& table, size_t tile, size_t apart,
                                      float* out) {
  constexpr int kSets = tile_sets(kFormat);
  constexpr size_t kBytes = unit_vectors(kFormat) * kVector, kColumns = unit_columns(kFormat);
  const Layout& l = m.layout;
  const uint8_t* codes[kStreams];
  Lanes acc[kStreams][kSets];
  for (size_t i = 0; i < kStreams; ++i) {
    codes[i] = m.codes + (tile + i * apart) * l.tile_bytes;
    for (Lanes& set : acc[i]) set = all(0.0f);
  }
  const int8_t* activations = in.codes;
  size_t block = 0;
  for (size_t g = 0; g < l.groups; ++g) {
    TileGroup<kSets> group[kStreams];
    for (size_t i = 0; i < kStreams; ++i) {
      group[i] = load_group<kFormat>(m, tile + i * apart, g);
      fetch_group_ahead<kFormat>(m, tile + i * apart, g);
    }
    size_t units = g + 1 < l.groups ? l.group_units : l.last_units;
    for (; units; ++block) {
      const size_t count = std::min(kBlockUnits, units);
      const int32_t whole = in.sums[block * in.step];
      Ints dots[kStreams][kSets];
      dot_block<kFormat, kStreams, kSets>(codes, activations, count, table, whole, dots);
      for (size_t i = 0; i < kStreams; ++i) {
        for (int s = 0; s < kSets; ++s)
          add_block(acc[i][s], dots[i][s], group[i].scale[s], group[i].zero[s], in.scales[block * in.step], whole);
        codes[i] += count * kBytes;
      }
      activations += count * kColumns;
      units -= count;
    }
  }
  for (size_t i = 0; i < kStreams; ++i) {
    const size_t row = (tile + i * apart) * tile_rows(kFormat);
    store_rows<kSets>(acc[i], 1, l.rows - row, out + row);
  }
}

// Two streams, the halves of the range, where there are registers for them.
template <Format kFormat>
void one_token(const Matrix& m, const Inputs& in, size_t first, size_t last, float* out) {
  constexpr size_t kStreams = PARETOBIT_WIDTH == 16 ? 2 : 1;
  const size_t apart = (last - first) / kStreams;
  const auto table = load_table<kFormat>(m);
  size_t tile = first;
  for (; tile < first + apart; ++tile) one_token_tiles<kFormat, kStreams>(m, in, table, tile, apart, out);
  for (tile = first + kStreams * apart; tile < last; ++tile) one_token_tiles<kFormat, 1>(m, in, table, tile, 0, out);
}

// ---- several tokens

constexpr size_t kMostQuads = 5 * kBlockUnits;
constexpr size_t kTokens = 64;     // whose running sums of a tile are kept at hand
constexpr size_t kFarTokens = 16;  // that take no longer than their codes take to come

template <Format kFormat, class TableOf, int kSets>
PARETOBIT_INLINE void unpack_block(const uint8_t* codes, size_t units, const TableOf& table, Bytes planes[][kSets]) {
  for (size_t u = 0; u < units; ++u) {
    auto unit = make_unit<kFormat>(codes + u * unit_vectors(kFormat) * kVector, table);
    each_quad<0, kSets>(unit, [&](int quad, const Bytes* set) PARETOBIT_LAMBDA {
      Bytes* at = planes[u * Unit<kFormat>::kQuads + size_t(quad)];
      for (int s = 0; s < kSets; ++s) at[s] = set[s];
    });
  }
}

// A block of some row sets, and which of the inputs it meets.
struct Block {
  const uint8_t* codes;
  size_t units;
  const Bytes* planes;  // (quads, sets), where the codes are unpacked already
  size_t quads, sets;
  const Lanes *scale, *zero;  // of each set
  size_t column, index;
};

// Adds kSets sets of a block times kCount tokens from `token` on, as many running sums as there are registers for, to acc
// (kSets, kTokens). each(visit) shows visit(quad, its sets) every quad.
template <int kTop, int kSets, int kCount, class Each>
PARETOBIT_INLINE void add_tokens(const Block& b, const Layout& l, const Inputs& in, size_t token, Lanes* acc, Each&& each) {
  const int8_t* codes = in.codes + b.column + token * l.token_bytes;
  const float* scales = in.scales + b.index * in.step + token;
  const int32_t* sums = in.sums + b.index * in.step + token;
  Sum sum[kCount][kSets];
  for (auto& own : sum)
    for (Sum& s : own) s = no_sum();
  each([&](size_t quad, const Bytes* set) PARETOBIT_LAMBDA {
#pragma GCC unroll 8
    for (int n = 0; n < kCount; ++n) {
      const Quad four = load_quad(codes + size_t(n) * l.token_bytes + 4 * quad);
      for (int s = 0; s < kSets; ++s) add_dot<kTop>(sum[n][s], set[s], four);
      for (int s = 0; s < kSets; ++s) spill<kTop>(sum[n][s], int(quad) + 1);
    }
  });
#pragma GCC unroll 8
  for (int n = 0; n < kCount; ++n) {
    for (int s = 0; s < kSets; ++s)
      add_block(acc[size_t(s) * kTokens + size_t(n)], total<kTop>(sum[n][s], sums[n]), b.scale[s], b.zero[s],
                scales[n], sums[n]);
  }
}

// Of codes as they are unpacked, kSets sets at a time from kFirst on. What stands past the last token is computed with in
// vain: kernels for every number of tokens would be too large.
template <Format kFormat, int kCount, int kSets, int kFirst = 0, class TableOf>
PARETOBIT_INLINE void add_codes(const Block& b, const Layout& l, const Inputs& in, const TableOf& table, size_t token,
                                Lanes* acc) {
  using Codes = Unit<kFormat>;
  constexpr int kAll = tile_sets(kFormat);
  Block some = b;
  some.scale += kFirst, some.zero += kFirst;
  const auto each = [&](auto&& visit) PARETOBIT_LAMBDA {
    for (size_t u = 0; u < b.units; ++u) {
      auto unit = make_unit<kFormat>(b.codes + u * unit_vectors(kFormat) * kVector, table);
      each_quad<0, kAll>(unit, [&](int quad, const Bytes* set) PARETOBIT_LAMBDA {
        visit(u * Codes::kQuads + size_t(quad), set + kFirst);
      });
    }
  };
  add_tokens<Codes::kTop, kSets, kCount>(some, l, in, token, acc + kFirst * kTokens, each);
  if constexpr (kFirst + kSets < kAll)
    add_codes<kFormat, kCount, kSets, kFirst + kSets>(b, l, in, table, token, acc);
}

// Of unpacked codes: formats share it.
template <int kTop, int kSets, int kCount>
PARETOBIT_APART void add_planes(const Block& b, const Layout& l, const Inputs& in, size_t token, Lanes* acc) {
  const auto each = [&](auto&& visit) PARETOBIT_LAMBDA {
    for (size_t q = 0; q < b.quads; ++q) visit(q, b.planes + q * b.sets);
  };
  add_tokens<kTop, kSets, kCount>(b, l, in, token, acc, each);
}

// Of kMost tokens at most.
template <int kTop, int kSets, int kMost>
PARETOBIT_INLINE void add_some(size_t count, const Block& b, const Layout& l, const Inputs& in, size_t token,
                               Lanes* acc) {
  if (count >= kMost) return add_planes<kTop, kSets, kMost>(b, l, in, token, acc);
  if constexpr (kMost > 1) add_some<kTop, kSets, kMost - 1>(count, b, l, in, token, acc);
}

// With more than sixteen registers sixteen sums fit in beside what unpacking needs.
constexpr bool kFits = PARETOBIT_WIDTH == 16 && sizeof(SumPart) == sizeof(Register);

// A block of a tile and tokens [start, start + count).
template <Format kFormat, class TableOf>
PARETOBIT_INLINE void add_tile(const Block& b, const Layout& l, const Inputs& in, const TableOf& table, size_t start,
                               size_t count, Lanes* acc) {
  constexpr int kAll = tile_sets(kFormat);
  // What comes next is asked for in parts, one before each eight tokens: as many lines at once would wait for each other. Far
  // ahead only where memory is what a block takes its time for.
  const size_t lines = b.units * unit_vectors(kFormat), near = std::max(kNear, lines * kVector);
  const auto fetch = [&](size_t n, size_t step) PARETOBIT_LAMBDA {
    for (size_t line = lines * n / count, end = lines * std::min(n + step, count) / count; line < end; ++line) {
      if (count <= kFarTokens) __builtin_prefetch(b.codes + line * kVector + kFar, 0, 2);
      __builtin_prefetch(b.codes + line * kVector + near, 0, 3);
    }
  };
  if constexpr (kFits) {
    size_t n = 0;
    for (; n + 4 < count; n += 8) {
      fetch(n, 8);
      add_codes<kFormat, 8, 2>(b, l, in, table, start + n, acc + n);
    }
    if (n < count) fetch(n, count - n);
    if (is_trellis(kFormat) && n + 2 >= count && n < count)
      add_codes<kFormat, 2, kAll>(b, l, in, table, start + n, acc + n);
    else if (n < count)
      add_codes<kFormat, 4, kAll>(b, l, in, table, start + n, acc + n);
  } else {
    constexpr int kTop = alike(Unit<kFormat>::kTop), kSets = PARETOBIT_WIDTH == 16 ? 2 : 1, kMost = 4;
    fetch(0, count);
    Block some = b;
    for (int set = 0; set < kAll; set += kSets, some.planes += kSets, some.scale += kSets, some.zero += kSets) {
      for (size_t n = 0, parts = (count + kMost - 1) / kMost, step; n < count; n += step, --parts) {
        step = (count - n) / parts;
        add_some<kTop, kSets, kMost>(step, some, l, in, start + n, acc + size_t(set) * kTokens + n);
      }
    }
  }
}

// A tile's block of a group, times tokens [start, start + count).
template <Format kFormat, class TableOf>
PARETOBIT_INLINE void meet_block(const Matrix& m, const Inputs& in, const TableOf& table, Bytes (*planes)[tile_sets(kFormat)],
                                 size_t tile, size_t g, size_t units, size_t unit, size_t block, size_t start, size_t count,
                                 Lanes* acc) {
  const Layout& l = m.layout;
  const auto group = load_group<kFormat>(m, tile, g);
  const uint8_t* codes = m.codes + tile * l.tile_bytes + unit * unit_vectors(kFormat) * kVector;
  fetch_group_ahead<kFormat>(m, tile, g);
  if constexpr (!kFits) unpack_block<kFormat>(codes, units, table, planes);
  const size_t quads = units * Unit<kFormat>::kQuads;
  const Block b{codes, units, planes[0], quads, tile_sets(kFormat), group.scale, group.zero, unit * l.unit, block};
  add_tile<kFormat>(b, l, in, table, start, count, acc);
}

// Sums (row sets, kTokens) of a tile and tokens [start, start + count), and of those that are read past them.
template <Format kFormat>
PARETOBIT_INLINE void clear_sums(size_t count, Lanes* acc) {
  static_assert(kTokens % kAtOnce == 0, "sums past the last token, computed in vain");
  for (int set = 0; set < tile_sets(kFormat); ++set)
    for (size_t n = 0; n < in_eights(count); ++n) acc[size_t(set) * kTokens + n] = all(0.0f);
}

template <Format kFormat>
PARETOBIT_INLINE void store_sums(const Layout& l, size_t tile, size_t start, size_t count, const Lanes* acc, float* out,
                                 size_t stride) {
  for (size_t n = 0; n < count; ++n)
    store_rows<tile_sets(kFormat)>(acc + n, kTokens, l.rows - tile * l.tile, out + (start + n) * stride + tile * l.tile);
}

template <Format kFormat>
void many_tokens(const Matrix& m, const Inputs& in, size_t first, size_t last, float* out, size_t stride) {
  const auto table = load_table<kFormat>(m);
  Bytes planes[kMostQuads][tile_sets(kFormat)];
  Lanes acc[tile_sets(kFormat) * kTokens];
  for (size_t tile = first; tile < last; ++tile) {
    for (size_t start = 0; start < in.count; start += kTokens) {
      const size_t count = std::min(kTokens, in.count - start);
      clear_sums<kFormat>(count, acc);
      each_block(m.layout, [&](size_t g, size_t units, size_t unit, size_t block) PARETOBIT_LAMBDA {
        meet_block<kFormat>(m, in, table, planes, tile, g, units, unit, block, start, count, acc);
      });
      store_sums<kFormat>(m.layout, tile, start, count, acc, out, stride);
    }
  }
}

// So many tokens wait for memory as one does; a trellis takes longer to unpack, so it waits with fewer.
template <Format kFormat>
constexpr size_t kWaiting = is_trellis(kFormat) ? 4 : 8;

// Two streams, the halves of the range, block by block in turns. Apart from multiply_as, because compilers that put both
// loops into one function leave each with fewer registers.
template <Format kFormat>
PARETOBIT_APART void few_tokens(const Matrix& m, const Inputs& in, size_t first, size_t last, float* out, size_t stride) {
  constexpr size_t kStreams = 2;
  const size_t apart = (last - first) / kStreams;
  const auto table = load_table<kFormat>(m);
  Bytes planes[kMostQuads][tile_sets(kFormat)];
  Lanes acc[kStreams][tile_sets(kFormat) * kTokens];
  for (size_t tile = first; tile < first + apart; ++tile) {
    for (Lanes* sums : acc) clear_sums<kFormat>(in.count, sums);
    each_block(m.layout, [&](size_t g, size_t units, size_t unit, size_t block) PARETOBIT_LAMBDA {
      for (size_t i = 0; i < kStreams; ++i)
        meet_block<kFormat>(m, in, table, planes, tile + i * apart, g, units, unit, block, 0, in.count, acc[i]);
    });
    for (size_t i = 0; i < kStreams; ++i)
      store_sums<kFormat>(m.layout, tile + i * apart, 0, in.count, acc[i], out, stride);
  }
  many_tokens<kFormat>(m, in, first + kStreams * apart, last, out, stride);
}

// ---- float32 activations

// One set of rows of a block as floats: code − zero, by column.
template <int kSets>
PARETOBIT_INLINE void subtract_zero(const Bytes planes[][kSets], int set, size_t quads, const Lanes& zero, Lanes* w) {
  for (size_t q = 0; q < quads; ++q) {
    const Bytes& codes = planes[q][set];
    w[4 * q] = to_float(byte_of<0>(codes)) - zero;
    w[4 * q + 1] = to_float(byte_of<1>(codes)) - zero;
    w[4 * q + 2] = to_float(byte_of<2>(codes)) - zero;
    w[4 * q + 3] = to_float(byte_of<3>(codes)) - zero;
  }
}

// Keeps its sums by itself: with clear_sums and store_sums one token takes 2 % longer.
template <Format kFormat>
void float_tokens(const Matrix& m, const Inputs& in, size_t first, size_t last, float* out, size_t stride) {
  const Layout& l = m.layout;
  constexpr int kAll = tile_sets(kFormat);
  const auto table = load_table<kFormat>(m);
  Bytes planes[kMostQuads][kAll];
  Lanes w[4 * kMostQuads], acc[kAll][kTokens];
  for (size_t tile = first; tile < last; ++tile) {
    for (size_t start = 0; start < in.count; start += kTokens) {
      const size_t count = std::min(kTokens, in.count - start);
      for (auto& set : acc)
        for (size_t n = 0; n < count; ++n) set[n] = all(0.0f);
      each_block(l, [&](size_t g, size_t units, size_t unit, size_t) PARETOBIT_LAMBDA {
        const auto group = load_group<kFormat>(m, tile, g);
        unpack_block<kFormat>(m.codes + tile * l.tile_bytes + unit * unit_vectors(kFormat) * kVector, units, table,
                              planes);
        const size_t quads = units * Unit<kFormat>::kQuads;
        for (int set = 0; set < kAll; ++set) {
          subtract_zero<kAll>(planes, set, quads, group.zero[set], w);
          for (size_t n = 0; n < count; ++n) {
            const float* x = in.values + (start + n) * l.padded + unit * l.unit;
            Lanes part[4] = {all(0.0f), all(0.0f), all(0.0f), all(0.0f)};
            for (size_t c = 0; c < 4 * quads; c += 4)
              for (int k = 0; k < 4; ++k) part[k] = part[k] + w[c + size_t(k)] * all(x[c + size_t(k)]);
            acc[set][n] = acc[set][n] + ((part[0] + part[1]) + (part[2] + part[3])) * group.scale[set];
          }
        }
      });
      for (size_t n = 0; n < count; ++n)
        store_rows<kAll>(acc[0] + n, kTokens, l.rows - tile * l.tile, out + (start + n) * stride + tile * l.tile);
    }
  }
}

// ---- matrices of floats, rows in their plain order

template <Format kFormat>
PARETOBIT_INLINE Lanes load_floats(const uint8_t* from) {
  if constexpr (kFormat == Format::kF32) {
    Lanes r;
    PARETOBIT_EACH std::memcpy(&r.part[p], from + p * sizeof r.part[p], sizeof r.part[p]);
    return r;
  } else {
    const auto* words = reinterpret_cast<const uint16_t*>(from);
    if constexpr (kFormat == Format::kF16) return from_half(words);
    const Ints wide = widen_shorts(words);
    Lanes r;
    PARETOBIT_EACH r.part[p] = (Register)(wide.part[p] << 16);
    return r;
  }
}

// The first `count` < 16 columns from here; 0 past them.
template <Format kFormat>
PARETOBIT_INLINE Lanes load_some_floats(const uint8_t* from, size_t count) {
  alignas(uint16_t) uint8_t rest[64] = {};
  std::memcpy(rest, from, count * float_bytes(kFormat));
  return load_floats<kFormat>(rest);
}

PARETOBIT_INLINE Lanes load_some(const float* from, size_t count) {
  if (count >= 16) return load(from);
  float rest[16] = {};
  std::memcpy(rest, from, count * sizeof(float));
  return load(rest);
}

// Lane l with l + 8, then l + 4, l + 2, l + 1.
PARETOBIT_INLINE float tree_sum(const Lanes& a) {
  float lane[16];
  store(lane, a);
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

// As many sums at once as there are registers for. Past the last row or token the last one is computed again.
template <Format kFormat, size_t kRows, size_t kTokens>
PARETOBIT_INLINE void float_rows_of(const Matrix& m, const Inputs& in, size_t first, size_t last, float* out,
                                    size_t stride) {
  constexpr size_t kBytes = float_bytes(kFormat);
  const size_t columns = m.layout.columns, whole = columns / 16 * 16;
  for (size_t row = first; row < last; row += kRows) {
    for (size_t token = 0; token < in.count; token += kTokens) {
      const uint8_t* weights[kRows];
      const float* values[kTokens];
      Lanes acc[kRows][kTokens];
      for (size_t r = 0; r < kRows; ++r) weights[r] = m.codes + std::min(row + r, last - 1) * columns * kBytes;
      for (size_t t = 0; t < kTokens; ++t) values[t] = in.values + std::min(token + t, in.count - 1) * columns;
      for (auto& sums : acc)
        for (auto& sum : sums) sum = all(0.0f);
      const auto add = [&](size_t c, const auto& weight, const auto& value) PARETOBIT_LAMBDA {
        Lanes x[kTokens];
        for (size_t t = 0; t < kTokens; ++t) x[t] = value(values[t] + c);
        for (size_t r = 0; r < kRows; ++r) {
          const Lanes w = weight(weights[r] + c * kBytes);
          for (size_t t = 0; t < kTokens; ++t) acc[r][t] = acc[r][t] + w * x[t];
        }
      };
      for (size_t c = 0; c < whole; c += 16) {
        if constexpr (kTokens == 1)
          for (const uint8_t* from : weights) fetch_ahead(from + c * kBytes, 16 * kBytes);
        add(c, load_floats<kFormat>, load);
      }
      if (const size_t rest = columns - whole)
        add(
            whole, [&](const uint8_t* from) PARETOBIT_LAMBDA { return load_some_floats<kFormat>(from, rest); },
            [&](const float* from) PARETOBIT_LAMBDA { return load_some(from, rest); });
      for (size_t r = 0; r < kRows; ++r)
        for (size_t t = 0; t < kTokens; ++t)
          out[std::min(token + t, in.count - 1) * stride + std::min(row + r, last - 1)] = tree_sum(acc[r][t]);
    }
  }
}

template <Format kFormat>
void float_rows(const Matrix& m, const Inputs& in, size_t first, size_t last, float* out, size_t stride) {
  constexpr size_t kRows = PARETOBIT_WIDTH == 16 ? 4 : 1;  // of four tokens each
  const size_t start = first * m.layout.tile, end = std::min(last * m.layout.tile, m.layout.rows);
  if (in.count == 1)
    float_rows_of<kFormat, 4, 1>(m, in, start, end, out, stride);
  else
    float_rows_of<kFormat, kRows, 4>(m, in, start, end, out, stride);
}

template <Format kFormat>
void multiply_as(const Matrix& m, const Inputs& in, size_t first, size_t last, float* out, size_t stride) {
  if (in.values)
    float_tokens<kFormat>(m, in, first, last, out, stride);
  else if (in.count == 1)
    one_token<kFormat>(m, in, first, last, out);
  else if (kFits && in.count <= kWaiting<kFormat>)
    few_tokens<kFormat>(m, in, first, last, out, stride);
  else
    many_tokens<kFormat>(m, in, first, last, out, stride);
}

void multiply(const Matrix& m, const Inputs& in, size_t first, size_t last, float* out, size_t stride) {
  with_format(m.layout.format, [&](auto format) {
    constexpr Format kFormat = decltype(format)::value;
    if constexpr (is_float(kFormat))
      float_rows<kFormat>(m, in, first, last, out, stride);
    else
      multiply_as<kFormat>(m, in, first, last, out, stride);
  });
}
