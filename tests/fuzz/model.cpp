// A hostile model: any dimensions, formats, sizes and addresses. Whatever is accepted computes some tokens.
#include "model.h"

#include <deque>
#include <stdexcept>

#include "reader.h"
#include "session.h"

using namespace paretobit;
using namespace paretobit::test;

namespace {

constexpr size_t kMostBytes = size_t(1) << 18;  // of a matrix that really gets its bytes

Config read_config(Reader& in) {
  Config c;
  c.hidden = in.size(70);
  c.intermediate = in.size(70);
  c.kv_heads = in.size(3);
  c.heads = in.byte() < 252 ? c.kv_heads * (in.below(3) + 1) : in.size(7);
  c.head_dim = in.byte() < 252 ? 2 * (in.below(20) + 1) : in.size(40);
  c.vocab = in.size(60);
  c.positions = in.size(200);
  const uint8_t flags = in.byte();
  c.tied = flags & 1, c.qkv_bias = flags & 2, c.o_bias = flags & 4, c.mlp_bias = flags & 8;
  c.qk_norm = flags & 16, c.post_norms = flags & 32;
  c.activation = in.byte() < 252 ? Activation(in.below(2)) : Activation(in.byte());
  const auto real = [&](float usual) { return in.byte() < 240 ? usual : in.number<float>(); };
  c.norm_eps = real(1e-5f), c.norm_offset = real(0), c.attn_scale = real(0.25f), c.embed_scale = real(1);
  const size_t layers = in.below(3), ropes = in.below(3);
  for (size_t i = 0; i < layers; ++i) c.windows.push_back(in.size(200)), c.rope_of.push_back(in.below(ropes + 1));
  if (in.byte() > 252) c.rope_of.push_back(in.number<size_t>());
  for (size_t i = 0; i < ropes; ++i) {
    Rope rope;
    const size_t half = in.byte() < 250 ? c.head_dim / 2 : in.byte();
    for (size_t j = 0; j < half && j < 100; ++j) rope.radians.push_back(in.byte() < 240 ? in.byte() : in.number<double>());
    rope.factor = real(1);
    c.ropes.push_back(rope);
  }
  return c;
}

// Everything that the model points into.
struct Memory {
  std::deque<Exact<uint8_t>> bytes;
  std::deque<Exact<uint16_t>> halves;
};

// A span of mostly `size` elements at a mostly aligned address, with fuzzed content as long as there is any.
template <class T>
Span<T> read_span(Reader& in, std::deque<Exact<T>>& memory, size_t size) {
  const uint8_t choice = in.byte();
  if (choice == 255) return {nullptr, size};
  if (choice == 254) size = in.number<size_t>();
  if (size > kMostBytes) return {reinterpret_cast<T*>(64), 0};
  Exact<T>& made = memory.emplace_back(size + (choice == 253));
  const size_t some = std::min<size_t>(in.byte(), size);
  for (size_t i = 0; i < some; ++i) made[i] = in.number<T>();
  if (sizeof(T) == 2)
    for (size_t i = some; i < size; ++i) made[i] = T(0x2000);
  const auto* at = reinterpret_cast<const uint8_t*>(made.data()) + (choice == 253);
  return {reinterpret_cast<const T*>(at), size};
}

void add_matrix(Reader& in, Model& model, Memory& memory, const char* role, size_t layer, size_t rows, size_t columns) {
  Stored s;
  s.format = in.byte() < 252 ? Format(in.below(kFormats)) : Format(in.byte());
  s.rows = in.byte() < 252 ? rows : in.size(70);
  s.columns = in.byte() < 252 ? columns : in.size(70);
  const uint8_t group = in.byte();
  s.group = is_float(s.format) || group < (is_trellis(s.format) ? 250 : 100) ? s.columns : group < 252 ? 16 + group % 32 : in.number<size_t>();
  s.twice_zero = in.byte() < 252 ? int(in.below(254)) + 1 : in.number<int32_t>();
  const bool small = s.rows && s.columns && s.group && s.rows < 4096 && s.columns < 4096 && int(s.format) < kFormats;
  const Layout l(small ? s.format : Format::k1, small ? s.rows : 1, small ? s.columns : 1, small ? s.group : 1);
  if (is_float(l.format)) {
    s.codes = read_span(in, memory.bytes, l.rows * l.columns * float_bytes(l.format));
  } else {
    s.codes = read_span(in, memory.bytes, l.tiles * l.tile_bytes);
    s.scale = read_span(in, memory.halves, l.tiles * l.groups * l.tile);
    if (is_trellis(l.format) && in.byte() < 250) {
      s.table = read_span(in, memory.bytes, kTable);
      if (s.table.size == kTable && in.byte() < 250)
        for (size_t i = 0; i < memory.bytes.back().size(); ++i) memory.bytes.back()[i] &= 63;  // no level above 127
    }
    if (is_trellis(l.format) ? in.byte() > 250 : in.coin()) s.zero = read_span(in, memory.bytes, l.tiles * l.groups * zero_bytes(l.format));
  }
  model.add_matrix(role, layer, s);
}

void add_vector(Reader& in, Model& model, const char* role, size_t layer, size_t size) {
  if (in.byte() > 252) size = in.byte();
  Exact<float> values(size < kMostBytes ? size : 0);
  for (size_t i = 0; i < values.size(); ++i) values[i] = in.byte() < 240 ? float(in.byte()) / 64 : in.number<float>();
  model.add_vector(role, layer, {values.data(), values.size()});
}

void add_rotation(Reader& in, Model& model, const char* tap, size_t layer, size_t width) {
  if (in.byte() < 160) return;
  if (in.byte() > 250) width = in.byte();
  const size_t order = in.byte() < 200 ? 1 : 4 * in.below(6);
  Exact<int8_t> signs(width), dense(order > 1 ? order * order : 0);
  for (size_t i = 0; i < width; ++i) signs[i] = in.byte() < 254 ? int8_t(in.coin() ? 1 : -1) : in.number<int8_t>();
  for (size_t i = 0; i < dense.size(); ++i) dense[i] = int8_t(in.coin() ? 1 : -1);
  model.add_rotation(tap, layer, OwnedRotation(width, order, {signs.data(), width}, {dense.data(), dense.size()}));
}

void add_layer(Reader& in, Model& model, Memory& memory, size_t layer) {
  const Config& c = model.config();
  const size_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  const auto matrix = [&](const char* role, size_t rows, size_t columns) {
    if (in.byte() < 254) add_matrix(in, model, memory, role, layer, rows, columns);
  };
  const auto vector = [&](const char* role, size_t size, bool wanted) {
    if (wanted != (in.byte() > 253)) add_vector(in, model, role, layer, size);
  };
  matrix("q", q, c.hidden), matrix("k", kv, c.hidden), matrix("v", kv, c.hidden), matrix("o", c.hidden, q);
  matrix("gate", c.intermediate, c.hidden), matrix("up", c.intermediate, c.hidden);
  matrix("down", c.hidden, c.intermediate);
  add_rotation(in, model, "attn_in", layer, c.hidden), add_rotation(in, model, "o_in", layer, q);
  add_rotation(in, model, "mlp_in", layer, c.hidden), add_rotation(in, model, "down_in", layer, c.intermediate);
  vector("attn_norm", c.hidden, true), vector("mlp_norm", c.hidden, true);
  vector("post_attn_norm", c.hidden, c.post_norms), vector("post_mlp_norm", c.hidden, c.post_norms);
  vector("q_norm", c.head_dim, c.qk_norm), vector("k_norm", c.head_dim, c.qk_norm);
  vector("q_bias", q, c.qkv_bias), vector("k_bias", kv, c.qkv_bias), vector("v_bias", kv, c.qkv_bias);
  vector("o_bias", c.hidden, c.o_bias), vector("gate_bias", c.intermediate, c.mlp_bias);
  vector("up_bias", c.intermediate, c.mlp_bias), vector("down_bias", c.hidden, c.mlp_bias);
}

// One step with up to three sequences; sizes, tokens and sequences may be impossible.
void step(Reader& in, Session& session, size_t vocab) {
  std::vector<Feed> feeds;
  std::deque<Exact<int32_t>> tokens;
  size_t wanted = 0;
  for (size_t i = in.below(4); i; --i) {
    Exact<int32_t>& some = tokens.emplace_back(in.byte() < 200 ? in.below(5) : in.below(70));
    for (size_t t = 0; t < some.size(); ++t) some[t] = in.byte() < 252 ? int32_t(in.byte() % vocab) : in.number<int32_t>();
    const size_t first = in.byte() < 250 ? in.below(some.size() + 1) : in.number<size_t>();
    feeds.push_back({in.byte() < 250 ? in.below(3) : in.number<size_t>(), {some.data(), some.size()}, first});
    wanted += first < some.size() ? some.size() - first : 0;
  }
  Exact<float> logits(in.byte() < 250 ? wanted * vocab : in.byte());
  session.step(feeds, logits.data(), logits.size());
}

void use(Reader& in, const Model& model) {
  const std::vector<std::string> isas = available();
  const Kernels& k = kernels(isas[in.below(isas.size())]);
  Session session(model, k, in.byte() < 240 ? 1 : 2, in.coin(), in.size(model.config().positions));
  for (int action = 0; action < 12 && !in.empty(); ++action) {
    try {
      const uint8_t choice = in.byte();
      if (choice < 40) session.open();
      else if (choice < 50) session.close(in.below(3));
      else if (choice < 70) session.truncate(in.below(3), in.byte());
      else step(in, session, model.config().vocab);
    } catch (const std::invalid_argument&) {
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Reader in(data, size);
  Memory memory;
  try {
    Model model(read_config(in));
    const Config& c = model.config();
    if (c.vocab > 4096 || c.hidden > 4096) return 0;
    add_matrix(in, model, memory, "embed", 0, c.vocab, c.hidden);
    if (!c.tied) add_matrix(in, model, memory, "head", 0, c.vocab, c.hidden);
    add_vector(in, model, "final_norm", 0, c.hidden);
    add_rotation(in, model, "head_in", 0, c.hidden);
    if (!c.tied || in.byte() > 253) add_rotation(in, model, "embed_out", 0, c.hidden);
    for (size_t layer = 0; layer < c.layers(); ++layer) add_layer(in, model, memory, layer);
    model.seal();
    use(in, model);
  } catch (const std::invalid_argument&) {
  }
  return 0;
}
