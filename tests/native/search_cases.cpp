#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "cases.h"
#include "matrices.h"
#include "pack.h"

namespace paretobit::test {
namespace {

std::vector<float> weights(size_t count, Random& random) {
  std::vector<float> w(count);
  for (float& x : w) x = random.symmetric() * Random::power(int(random.below(5)) - 5);
  return w;
}

void search_case(const Kernels& k, int levels, ZeroKind kind, size_t group, bool weighted, const Report& report) {
  const std::string name = "search/" + std::to_string(levels) + "/zero" + std::to_string(int(kind)) + "/g" +
                           std::to_string(group) + (weighted ? "/weighted" : "");
  Random random(name);
  const size_t rows = 5, columns = 70, groups = (columns - 1) / group + 1;
  const std::vector<float> w = weights(rows * columns, random);
  std::vector<float> importance(columns), coarse(32), fine(16), error(rows * groups);
  for (float& h : importance) h = 1.0f + random.symmetric();
  for (size_t i = 0; i < coarse.size(); ++i) coarse[i] = float(40 + 2 * i) * 0x1p-6f;
  for (size_t i = 0; i < fine.size(); ++i) fine[i] = 1.0f + (float(i) - 7.5f) * 0x1p-8f;
  std::vector<uint16_t> scale(rows * groups);
  std::vector<uint8_t> zero(rows * groups);
  const float offset = kind == kMid ? float(levels - 1) / 2 : float(levels) / 2;
  const SearchArgs args{w.data(), weighted ? importance.data() : nullptr, rows, columns, group, levels, kind,
                        offset, coarse.data(), coarse.size(), fine.data(), scale.data(),
                        kind == kStored ? zero.data() : nullptr, error.data()};
  k.search_rows(args, 0, 2);
  k.search_rows(args, 2, rows);
  Digest digest;
  digest.add(scale), digest.add(zero), digest.add(error);
  report(name, digest);
}

template <class T>
void feedback_case(void (*feed_back)(const FeedbackArgs<T>&, size_t, size_t), bool pull,
                   const Report& report) {
  const std::string name = std::string("feed back/") + (sizeof(T) == 4 ? "float" : "double") + (pull ? "/pull" : "");
  Random random(name);
  const size_t rows = 9, width = 60, start = 11, count = 33, groups = 3;
  const auto numbers = [&](size_t n, T low) {
    std::vector<T> values(n);
    for (T& x : values) x = low + T(random.symmetric());
    return values;
  };
  std::vector<T> rest = numbers(rows * width, T(0)), scale = numbers(rows * groups, T(1.25));
  const std::vector<T> upper = numbers(count * count, T(2)), pulls = numbers(count * count, T(0));
  std::vector<T> errors(rows * count), moved(rows * count);
  std::vector<int64_t> group_of(count);
  for (int64_t& g : group_of) g = random.below(uint32_t(groups));
  for (T& s : scale) s *= T(0.0625);
  std::vector<uint8_t> codes(rows * width);
  feed_back({rest.data(), rows, width, start, count, upper.data(), pull ? pulls.data() : nullptr, scale.data(), nullptr,
             T(7.5), groups, group_of.data(), 16, codes.data(), errors.data(), pull ? moved.data() : nullptr},
            0, rows);
  Digest digest;
  digest.add(rest), digest.add(codes), digest.add(errors), digest.add(moved);
  report(name, digest);
}

void fake_case(const Kernels& k, int levels, size_t group, const Report& report) {
  const std::string name = "fake/" + std::to_string(levels) + "/g" + std::to_string(group);
  Random random(name);
  const size_t rows = 5, columns = 70, groups = (columns - 1) / group + 1;
  const std::vector<float> w = weights(rows * columns, random), upstream = weights(rows * columns, random);
  std::vector<float> scale(rows * groups), out(rows * columns), to_w(rows * columns), to_scale(rows * groups);
  for (size_t i = 0; i < scale.size(); ++i) scale[i] = (i % 3 ? 0x1p-5f : -0x1p-6f) * (1.5f + random.symmetric());
  const float highest = float((levels - 1) / 2) + (levels == 2 || levels == 4 ? 0.5f : 0.0f);
  const float lowest = levels == 8 ? -highest - 1 : -highest;
  const FakeArgs forward{w.data(), scale.data(), columns, group, lowest, highest, out.data()};
  k.fake(forward, 0, 2);
  k.fake(forward, 2, rows);
  FakeGradientArgs backward{forward, upstream.data(), -1.98f, 1.98f, -0.75f, 0.75f, 0.5f, 0.5f, to_scale.data()};
  backward.forward.out = to_w.data();
  k.fake_gradients(backward, 0, 3);
  k.fake_gradients(backward, 3, rows);
  Digest digest;
  digest.add(out), digest.add(to_w), digest.add(to_scale);
  report(name, digest);
}

template <class T>
void divergence_case(const Kernels& k, size_t columns, const Report& report) {
  const std::string name = "divergence/" + std::to_string(8 * sizeof(T)) + "/" + std::to_string(columns);
  Random random(name);
  const size_t rows = 5;
  std::vector<T> wanted(rows * columns), found(rows * columns), gradient(rows * columns);
  for (auto* logits : {&wanted, &found})
    for (T& x : *logits) {
      const float value = 8 * random.symmetric() - 20;
      uint32_t bits;
      std::memcpy(&bits, &value, 4);
      if constexpr (sizeof(T) == 2)
        x = T(bits >> 16);
      else
        x = value;
    }
  std::vector<float> loss(rows), scratch(divergence_scratch(columns));
  const DivergenceArgs args{wanted.data(), found.data(), columns, sizeof(T) == 2, 0.125f, loss.data(), gradient.data()};
  k.divergence(args, scratch.data(), 0, 2);
  k.divergence(args, scratch.data(), 2, rows);
  Digest digest;
  digest.add(gradient);  // losses hang on the library's logarithm
  report(name, digest);
}

}  // namespace

void search_cases(const Kernels& k, const Report& report) {
  for (const int levels : {2, 3, 4, 8, 16, 255})
    for (const size_t group : {size_t(16), size_t(33), size_t(70)})
      for (const bool weighted : {false, true}) {
        search_case(k, levels, kMid, group, weighted, report);
        if (levels < 255) search_case(k, levels, kStored, group, weighted, report);
        if (levels > 3 && levels < 255) search_case(k, levels, kTwos, group, weighted, report);
      }
  for (const bool pull : {false, true}) {
    feedback_case<float>(k.feed_back, pull, report);
    feedback_case<double>(k.feed_back_double, pull, report);
  }
  for (const int levels : {2, 3, 4, 8})
    for (const size_t group : {size_t(16), size_t(33), size_t(70)}) fake_case(k, levels, group, report);
  for (const size_t columns : {size_t(3), size_t(16), size_t(77)}) {
    divergence_case<float>(k, columns, report);
    divergence_case<uint16_t>(k, columns, report);
  }
}

void pack_cases(const Report& report) {
  for (int format = 0; format < kFormats; ++format)
    for (const size_t columns : {size_t(1), size_t(16), size_t(47), size_t(133)}) {
      if (is_float(Format(format))) continue;
      const bool ring = is_trellis(Format(format));
      const Layout l = layout_of(format, ring ? 101 : 37, columns, ring ? columns : 40);
      const std::string name = std::string("pack/") + name_of(l.format) + "/" + std::to_string(columns);
      Random random(name);
      std::vector<uint8_t> codes(l.rows * columns), back(codes.size());
      std::vector<uint8_t> packed(l.tiles * l.tile_bytes), expected(packed.size());
      for (size_t i = 0; i < codes.size(); ++i) {
        codes[i] = uint8_t(random.below(uint32_t(levels_of(l.format, int(i / columns % l.tile / kSet)))));
        put_code(l, expected.data(), i / columns, padded_column(l, i % columns), codes[i]);
      }
      pack(l, codes.data(), packed.data(), 2);
      unpack(l, packed.data(), back.data(), 2);
      if (packed != expected || back != codes) {
        std::fprintf(stderr, "%s: not the bytes that docs/FORMAT.md asks for\n", name.c_str());
        std::exit(1);
      }
      Digest digest;
      digest.add(packed);
      report(name, digest);
    }
}

}  // namespace paretobit::test
