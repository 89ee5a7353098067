#include "cases.h"

#include <cstdio>
#include <cstdlib>

#include "matrices.h"
#include "threads.h"

namespace paretobit::test {
namespace {

struct Shape {
  size_t rows, columns, group;
};
// Whole tiles and parts of them; rows of a part of a unit, a block and a half, many groups, one group; groups that are
// no whole units.
const Shape kShapes[] = {{32, 64, 64},  {1, 1, 1},      {33, 100, 100}, {70, 97, 16},  {40, 129, 17},
                         {64, 320, 64}, {5, 600, 600},  {96, 256, 32},  {31, 40, 20},  {45, 200, 80},
                         {32, 16, 16},  {17, 336, 112}, {64, 161, 161}, {34, 240, 96},
                         {193, 80, 80}};
const Format kPacked[] = {Format::k1, Format::kTrits, Format::k2, Format::k3,
                          Format::k4, Format::k5,     Format::k6, Format::k8,
                          Format::kT1, Format::kT1Half, Format::kT2, Format::kT2Half,
                          Format::kT3, Format::kT3Half, Format::kT4};
const Format kFloats[] = {Format::kF16, Format::kBF16, Format::kF32};
const char* const kFills[] = {"random", "extreme", "ends", "tiny"};

std::string describe(const Layout& l) {
  return std::string("w") + name_of(l.format) + "/" + std::to_string(l.rows) + "x" + std::to_string(l.columns) +
         "/g" + std::to_string(l.group);
}

[[noreturn]] void fail(const Kernels& kernels, const std::string& name, const char* what) {
  std::fprintf(stderr, "%s: %s: %s\n", kernels.name, name.c_str(), what);
  std::exit(1);
}

// The product, checked: nothing written beside it, and the same by tiles, on threads and token by token.
void product(const Kernels& k, const std::string& name, const Matrix& m, const Tokens& tokens, bool values,
             const Report& report) {
  const Layout& l = m.layout;
  const size_t stride = l.rows + 3;
  const auto untouched = [&] { return std::vector<float>(tokens.count * stride, 0x1.234568p100f); };
  const Inputs in = values ? tokens.as_values() : tokens.as_codes();
  std::vector<float> out = untouched(), parts = untouched(), alone = untouched();
  k.multiply(m, in, 0, l.tiles, out.data(), stride);
  for (size_t t = 0; t < tokens.count; ++t)
    for (size_t row = l.rows; row < stride; ++row)
      if (out[t * stride + row] != 0x1.234568p100f) fail(k, name, "wrote beside its output");
  parallel_rows(l.tiles, size_t(1) << 30, 3,
                [&](size_t first, size_t last) { k.multiply(m, in, first, last, parts.data(), stride); });
  if (std::memcmp(out.data(), parts.data(), 4 * out.size())) fail(k, name, "depends on how rows are split");
  for (size_t t = 0; t < tokens.count; ++t) {
    const Inputs one{1, values ? in.values + t * l.padded : nullptr, values ? nullptr : in.codes + t * l.token_bytes,
                     values ? nullptr : in.scales + t, values ? nullptr : in.sums + t, in.step};
    k.multiply(m, one, 0, l.tiles, alone.data() + t * stride, stride);
  }
  if (std::memcmp(out.data(), alone.data(), 4 * out.size())) fail(k, name, "depends on the batch");
  Digest digest;
  digest.add(out);
  report(name, digest);
}

void rows(const Kernels& k, const std::string& name, const Matrix& m, const Report& report) {
  Digest digest;
  std::vector<float> out(m.layout.columns);
  for (size_t row = 0; row < m.layout.rows; ++row) {
    k.row(m, row, out.data());
    digest.add(out);
  }
  report(name + "/row", digest);
}

void packed_cases(const Kernels& k, const Report& report) {
  for (const Format format : kPacked)
    for (size_t s = 0; s < std::size(kShapes); ++s) {
      const Layout l(format, kShapes[s].rows, kShapes[s].columns,
                     is_trellis(format) ? kShapes[s].columns : kShapes[s].group);
      for (int zero = 0; zero < 3; ++zero) {  // stored, the grid's middle, two's complement
        if (zero ? twice_zero_of(format, zero - 1) == 0 : format == Format::k8 || is_trellis(format)) continue;
        for (const Fill fill : {Fill::random, Fill::extreme, Fill::ends, Fill::tiny}) {
          const std::string name = describe(l) + "/zero" + std::to_string(zero) + "/" + kFills[size_t(fill)];
          Random random(name);
          const Packed packed = make_matrix(l, zero == 0, zero - 1, fill, random);
          const size_t count = (s + size_t(zero) + size_t(fill)) % 9 + 1;
          const Tokens tokens = make_tokens(l, count, fill, random);
          if (fill == Fill::random || fill == Fill::tiny) {
            rows(k, name, packed.matrix, report);
            product(k, name + "/values", packed.matrix, tokens, true, report);
          }
          product(k, name + "/codes", packed.matrix, tokens, false, report);
        }
      }
    }
}

// Every way through many tokens: few in two streams with a tile left over, eights with a rest, more than 64.
void crowd_cases(const Kernels& k, const Report& report) {
  for (const Format format : {Format::k3, Format::k8, Format::kT2, Format::kT3Half, Format::kT4}) {
    const Layout l(format, 130, 96, is_trellis(format) ? 96 : 32);
    for (const size_t count : {2, 3, 4, 5, 8, 9, 15, 64, 65, 70}) {
      const std::string name = describe(l) + "/" + std::to_string(count) + " tokens";
      Random random(name);
      const Packed packed = make_matrix(l, false, 0, Fill::random, random);
      const Tokens tokens = make_tokens(l, count, Fill::random, random);
      product(k, name + "/codes", packed.matrix, tokens, false, report);
      if (count > 64) product(k, name + "/values", packed.matrix, tokens, true, report);
    }
  }
}

void float_cases(const Kernels& k, const Report& report) {
  for (const Format format : kFloats)
    for (size_t s = 0; s < std::size(kShapes); ++s) {
      const Layout l(format, kShapes[s].rows, kShapes[s].columns, kShapes[s].columns);
      Random random(describe(l));
      const Packed packed = make_matrix(l, false, 0, Fill::random, random);
      rows(k, describe(l), packed.matrix, report);
      product(k, describe(l), packed.matrix, make_tokens(l, s % 9 + 1, Fill::random, random), true, report);
    }
}

void activation_cases(const Kernels& k, const Report& report) {
  for (const Format format : {Format::k4, Format::kTrits})  // one of each unit
    for (const Shape& shape : kShapes) {
      const Layout l(format, 1, shape.columns, shape.group);
      for (const Fill fill : {Fill::random, Fill::extreme, Fill::ends, Fill::tiny}) {
        const std::string name = describe(l) + "/" + kFills[size_t(fill)];
        Random random(name);
        const std::vector<float> x = make_activations(l, fill, random);
        std::vector<int8_t> codes(l.padded, int8_t(1));
        std::vector<float> scales(l.blocks), values(l.padded, 1.0f);
        std::vector<int32_t> sums(l.blocks);
        k.quantize(l, x.data(), codes.data(), scales.data(), sums.data(), 1);
        k.spread(l, x.data(), values.data());
        Digest digest;
        digest.add(codes), digest.add(scales), digest.add(sums), digest.add(values);
        report(name + "/activations", digest);
      }
    }
}

}  // namespace

void run_cases(const Kernels& kernels, const Report& report) {
  packed_cases(kernels, report);
  crowd_cases(kernels, report);
  float_cases(kernels, report);
  activation_cases(kernels, report);
  if (!kernels.attend) return;  // the plain loops
  layer_cases(kernels, report);
  search_cases(kernels, report);
  pack_cases(report);
}

}  // namespace paretobit::test
