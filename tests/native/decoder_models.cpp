#include "decoder_models.h"

#include "pack.h"

namespace paretobit::test {
namespace {

constexpr size_t kPositionsMost = 400;

Rope rope(size_t head_dim, double base) {
  Rope r;
  double radians = 1.0;
  for (size_t i = 0; i < head_dim / 2; ++i, radians *= base) r.radians.push_back(radians);
  return r;
}

Config llama() {
  Config c;
  c.hidden = 64, c.intermediate = 100, c.heads = 6, c.kv_heads = 2, c.head_dim = 16, c.vocab = 70;
  c.positions = kPositionsMost, c.norm_eps = 0x1p-17f, c.attn_scale = 0.25f;
  c.ropes = {rope(c.head_dim, 0.5)};
  c.rope_of = {0, 0, 0}, c.windows = {kPositionsMost, kPositionsMost, kPositionsMost};
  return c;
}

Config gemma() {
  Config c = llama();
  c.head_dim = 24, c.heads = 4, c.kv_heads = 1, c.activation = Activation::kGeluTanh;
  c.norm_offset = 1.0f, c.embed_scale = 8.0f, c.tied = c.qk_norm = c.post_norms = true;
  c.ropes = {rope(c.head_dim, 0.75), rope(c.head_dim, 0.375)};
  c.ropes[1].factor = 1.25;
  c.rope_of = {0, 1, 0}, c.windows = {9, kPositionsMost, 70};
  return c;
}

Config qwen() {
  Config c = llama();
  c.hidden = 80, c.intermediate = 61, c.qkv_bias = c.o_bias = c.mlp_bias = true;
  return c;
}

// A matrix whose products stay near 1, whatever the format. grouped: some of a row's columns may share a scale.
void add_matrix(Decoder& d, const char* role, size_t layer, Format f, size_t rows, size_t columns, Random& random,
                bool grouped = true) {
  const size_t groups[] = {columns, 16, 32, 48};
  const bool whole = is_float(f) || is_trellis(f) || !grouped;
  const size_t group = whole ? columns : std::min(groups[random.below(4)], columns);
  const Layout l(f, rows, columns, group);
  Packed& p = d.matrices.emplace_back(make_matrix(l, f != Format::k8 && !is_trellis(f) && random.below(2), 0, Fill::random, random));
  const int shift = is_float(f) ? 0 : is_trellis(f) || levels_of(f) >= 64 ? 7 : levels_of(f) >= 16 ? 5 : 3;
  for (uint16_t& half : p.scale) half = half & 0x7FFF ? uint16_t(half - (shift << 10)) : half;
  if (is_float(f)) {
    for (size_t i = 0; i < rows * columns; ++i) {
      const float value = random.symmetric() * 0x1p-3f;
      uint32_t word;
      std::memcpy(&word, &value, 4);
      const auto half = uint16_t(f == Format::kBF16 ? word >> 16 : (word >> 16 & 0x8000) | (0x2000 + random.below(0xC00)));
      if (f == Format::kF32) std::memcpy(&p.codes[4 * i], &word, 4);
      else std::memcpy(&p.codes[2 * i], &half, 2);
    }
  }
  Stored s{f, rows, columns, group, p.matrix.twice_zero, {p.codes.data(), p.codes.size()}, {}, {}};
  if (!p.scale.empty()) s.scale = {p.scale.data(), p.scale.size()};
  if (!p.zero.empty()) s.zero = {p.zero.data(), p.zero.size()};
  if (!p.table.empty()) s.table = {p.table.data(), p.table.size()};
  d.model->add_matrix(role, layer, s);
}

// Most taps; random signs, in blocks.
void add_rotations(Decoder& d, const Config& c, Random& random) {
  const auto add = [&](const char* tap, size_t layer, size_t width) {
    std::vector<int8_t> signs(width);
    for (int8_t& sign : signs) sign = random.below(2) ? 1 : -1;
    d.model->add_rotation(tap, layer, OwnedRotation(width, 1, {signs.data(), width}, {}));
  };
  add("head_in", 0, c.hidden);
  if (!c.tied) add("embed_out", 0, c.hidden);
  for (size_t layer = 0; layer < c.layers(); ++layer) {
    if (random.below(4)) add("attn_in", layer, c.hidden);
    if (random.below(4)) add("o_in", layer, c.heads * c.head_dim);
    if (random.below(4)) add("mlp_in", layer, c.hidden);
    if (random.below(4)) add("down_in", layer, c.intermediate);
  }
}

void add_vector(Decoder& d, const char* role, size_t layer, size_t size, float middle, Random& random) {
  std::vector<float> values(size);
  for (float& value : values) value = middle + 0.25f * random.symmetric();
  d.model->add_vector(role, layer, {values.data(), size});
}

void add_vectors(Decoder& d, const Config& c, size_t layer, Random& random) {
  const size_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  const float norm = 1.0f - c.norm_offset;
  for (const char* role : {"attn_norm", "mlp_norm"}) add_vector(d, role, layer, c.hidden, norm, random);
  if (c.post_norms)
    for (const char* role : {"post_attn_norm", "post_mlp_norm"}) add_vector(d, role, layer, c.hidden, norm, random);
  if (c.qk_norm)
    for (const char* role : {"q_norm", "k_norm"}) add_vector(d, role, layer, c.head_dim, norm, random);
  if (c.qkv_bias) {
    add_vector(d, "q_bias", layer, q, 0, random);
    for (const char* role : {"k_bias", "v_bias"}) add_vector(d, role, layer, kv, 0, random);
  }
  if (c.o_bias) add_vector(d, "o_bias", layer, c.hidden, 0, random);
  if (c.mlp_bias) {
    for (const char* role : {"gate_bias", "up_bias"}) add_vector(d, role, layer, c.intermediate, 0, random);
    add_vector(d, "down_bias", layer, c.hidden, 0, random);
  }
}

// Embedding or head in bands, the last one smaller than a tile.
void add_bands(Decoder& d, const char* role, const Config& c, Random& random) {
  const Format formats[] = {Format::k6, Format::kT2Half, Format::k3, Format::kT4};
  for (size_t i = 0; i < 4; ++i)
    add_matrix(d, role, 0, formats[i], i < 3 ? 17 : c.vocab - 3 * 17, c.hidden, random, false);
}

// Matrix i has format (first + i) % formats: four decoders of 23 matrices see them all in many places.
Decoder make_decoder(const char* name, const Config& c, size_t first, bool rotated = false, bool banded = false) {
  Decoder d{name, {}, std::make_unique<Model>(c)};
  Random random(name);
  size_t next = first;
  const auto format = [&] { return Format(next++ % size_t(kFormats)); };
  const size_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  for (const char* end : {"embed", "head"}) {
    if (c.tied && end == std::string("head")) continue;
    if (banded) add_bands(d, end, c, random);
    else add_matrix(d, end, 0, format(), c.vocab, c.hidden, random);
  }
  add_vector(d, "final_norm", 0, c.hidden, 1.0f - c.norm_offset, random);
  for (size_t layer = 0; layer < c.layers(); ++layer) {
    add_matrix(d, "q", layer, format(), q, c.hidden, random);
    add_matrix(d, "k", layer, format(), kv, c.hidden, random);
    add_matrix(d, "v", layer, format(), kv, c.hidden, random);
    add_matrix(d, "o", layer, format(), c.hidden, q, random);
    add_matrix(d, "gate", layer, format(), c.intermediate, c.hidden, random);
    add_matrix(d, "up", layer, format(), c.intermediate, c.hidden, random);
    add_matrix(d, "down", layer, format(), c.hidden, c.intermediate, random);
    add_vectors(d, c, layer, random);
  }
  if (rotated) add_rotations(d, c, random);
  d.model->seal();
  return d;
}

}  // namespace

std::vector<Decoder> make_decoders() {
  std::vector<Decoder> all;
  all.push_back(make_decoder("llama", llama(), 0));
  all.push_back(make_decoder("gemma", gemma(), 4));
  all.push_back(make_decoder("qwen", qwen(), 8));
  all.push_back(make_decoder("gemma, rotated", gemma(), 11, true));
  all.push_back(make_decoder("llama, rotated", llama(), 13, true));
  all.push_back(make_decoder("gemma, in bands", gemma(), 0, true, true));
  all.push_back(make_decoder("llama, in bands", llama(), 5, false, true));
  return all;
}

}  // namespace paretobit::test
