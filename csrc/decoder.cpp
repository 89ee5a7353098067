// The way of a step's tokens through the decoder. Every thread runs `compute`; barriers separate the stages.
// Threads split rows of matrices, heads or tokens.
#include <algorithm>

#include "angles.h"
#include "session.h"

namespace paretobit {
namespace {

struct Range {
  size_t first, last;
};

Range share(size_t count, size_t part, size_t parts) {
  return {count * part / parts, count * (part + 1) / parts};
}

Range overlap(Range a, Range b) { return {std::max(a.first, b.first), std::min(a.last, b.last)}; }

// Tiles of a matrix whose first byte lies in `bytes`, which counts from the matrix's own first.
Range tiles_in(Range bytes, const Layout& l) {
  const auto first_from = [&](size_t byte) {
    return std::min(l.tiles, (byte + l.tile_bytes - 1) / l.tile_bytes);
  };
  return {first_from(bytes.first), first_from(bytes.last)};
}

}  // namespace

void Session::compute(Worker& w, float* logits) {
  w.view = tokens_.size() <= kAlone ? &w.own : &shared_;
  w.active = {every_.data(), tokens_.size()};
  compute_angles(w);
  for (size_t layer = 0; layer < config_.layers(); ++layer) {
    project_heads(w, layer);
    pool_.barrier();
    store_heads(w, layer);
    if (layer + 1 == config_.layers()) w.active = {wanted_.data(), wanted_.size()};
    if (w.active.size == 0) return;
    pool_.barrier();
    attend(w, layer);
    pool_.barrier();
    project_attended(w, layer);
    pool_.barrier();
    project_gates(w, layer);
    pool_.barrier();
    project_down(w, layer);
    pool_.barrier();
  }
  project_logits(w, logits);
}

void Session::compute_angles(Worker& w) {
  const size_t half = config_.head_dim / 2;
  const Range mine = share(tokens_.size(), w.thread, pool_.size());
  for (size_t r = 0; r < config_.ropes.size(); ++r) {
    const Rope& rope = config_.ropes[r];
    for (size_t t = mine.first; t < mine.last; ++t) {
      float* cosines = angles_.get() + (r * kChunk + t) * 2 * half;
      for (size_t i = 0; i < half; ++i) {
        double cosine, sine;
        cosine_sine(double(tokens_[t].position) * rope.radians[i], cosine, sine);
        cosines[i] = float(rope.factor * cosine);
        cosines[half + i] = float(rope.factor * sine);
      }
    }
  }
}

// ---- activations

// The token's embedding, normed for the first layer.
const float* Session::enter(Worker& w, size_t i, const float* norm) {
  float* x = w.view->x.get() + i * config_.hidden;
  kernels_.row(model_.embedding(), size_t(tokens_[i].id), x);
  if (config_.embed_scale != 1.0f) kernels_.scale(x, config_.embed_scale, config_.hidden);
  kernels_.rms_norm(x, norm, config_.hidden, config_.norm_eps, w.normed.get());
  return w.normed.get();
}

// Adds to the stream what the last stage made of active token i, and norms it for the next.
const float* Session::advance(Worker& w, size_t i, const float* post_norm, const float* norm) {
  const size_t hidden = config_.hidden;
  float* x = w.view->x.get() + w.active.data[i] * hidden;
  const float* out = out_.get() + i * hidden;
  if (post_norm) {
    kernels_.rms_norm(out, post_norm, hidden, config_.norm_eps, w.normed.get());
    out = w.normed.get();
  }
  kernels_.add(x, out, hidden);
  kernels_.rms_norm(x, norm, hidden, config_.norm_eps, w.normed.get());
  return w.normed.get();
}

// Makes w.inputs of what source(i) gives for active token i, one entry a matrix, each column order only once.
template <class Source>
void Session::prepare(Worker& w, std::initializer_list<const Matrix*> matrices, Source&& source) {
  const Layout* layouts[3];
  size_t sets = 0, matrix = 0;
  for (const Matrix* m : matrices) {
    const Layout& l = m->layout;
    size_t s = 0;
    while (s < sets && !layouts[s]->same_columns(l)) ++s;
    if (s == sets) layouts[sets++] = &l;
    const Set& set = w.view->sets[s];
    w.inputs[matrix++] =
        quantizes(l) ? Inputs{w.active.size, nullptr, set.codes.get(), set.scales.get(), set.sums.get()}
                     : Inputs{w.active.size, set.values.get(), nullptr, nullptr, nullptr};
  }
  const bool together = w.view == &shared_;
  const Range mine = together ? share(w.active.size, w.thread, pool_.size()) : Range{0, w.active.size};
  for (size_t i = mine.first; i < mine.last; ++i) {
    const float* y = source(i);
    for (size_t s = 0; s < sets; ++s) {
      const Layout& l = *layouts[s];
      const Set& set = w.view->sets[s];
      if (quantizes(l))
        kernels_.quantize(l, y, set.codes.get() + i * l.padded, set.scales.get() + i * l.blocks,
                          set.sums.get() + i * l.blocks);
      else
        kernels_.spread(l, y, set.values.get() + i * l.padded);
    }
  }
  if (together) pool_.barrier();
}

// ---- matrices

void Session::multiply(const Matrix& matrix, const float* bias, const Inputs& inputs, size_t first,
                       size_t last, float* out, size_t stride) const {
  if (first >= last) return;
  kernels_.multiply(matrix, inputs, first, last, out, stride);
  if (!bias) return;
  const size_t row = first * kTile, count = std::min(last * kTile, matrix.layout.rows) - row;
  for (size_t t = 0; t < inputs.count; ++t) kernels_.add(out + t * stride + row, bias + row, count);
}

void Session::project_heads(Worker& w, size_t layer) {
  const Matrix& q = model_.matrix(layer, Model::kQ);
  const Matrix& k = model_.matrix(layer, Model::kK);
  const Matrix& v = model_.matrix(layer, Model::kV);
  const float* norm = model_.vector(layer, Model::kAttnNorm);
  const float* post_norm = layer ? model_.vector(layer - 1, Model::kPostMlpNorm) : nullptr;
  prepare(w, {&q, &k, &v},
          [&](size_t i) { return layer ? advance(w, i, post_norm, norm) : enter(w, i, norm); });
  struct {
    const Matrix& matrix;
    Model::VectorRole bias;
  } const parts[] = {{q, Model::kQBias}, {k, Model::kKBias}, {v, Model::kVBias}};
  size_t total = 0, before = 0, row = 0;
  for (const auto& part : parts) total += part.matrix.layout.tiles * part.matrix.layout.tile_bytes;
  const Range mine = share(total, w.thread, pool_.size());
  const size_t stride = q.layout.rows + k.layout.rows + v.layout.rows;
  for (size_t i = 0; i < 3; ++i) {
    const Layout& l = parts[i].matrix.layout;
    const Range bytes = overlap(mine, {before, before + l.tiles * l.tile_bytes});
    if (bytes.first < bytes.last) {
      const Range tiles = tiles_in({bytes.first - before, bytes.last - before}, l);
      multiply(parts[i].matrix, model_.vector(layer, parts[i].bias), w.inputs[i], tiles.first, tiles.last,
               qkv_.get() + row, stride);
    }
    before += l.tiles * l.tile_bytes;
    row += l.rows;
  }
}

void Session::project_attended(Worker& w, size_t layer) {
  const Matrix& o = model_.matrix(layer, Model::kO);
  prepare(w, {&o}, [&](size_t i) { return attended_.get() + i * o.layout.columns; });
  const Range tiles = share(o.layout.tiles, w.thread, pool_.size());
  multiply(o, model_.vector(layer, Model::kOBias), w.inputs[0], tiles.first, tiles.last, out_.get(),
           o.layout.rows);
}

void Session::project_gates(Worker& w, size_t layer) {
  const Matrix& gate = model_.matrix(layer, Model::kGate);
  const Matrix& up = model_.matrix(layer, Model::kUp);
  const float* post_norm = model_.vector(layer, Model::kPostAttnNorm);
  const float* norm = model_.vector(layer, Model::kMlpNorm);
  prepare(w, {&gate, &up}, [&](size_t i) { return advance(w, i, post_norm, norm); });
  const size_t rows = gate.layout.rows;
  const Range tiles = share(gate.layout.tiles, w.thread, pool_.size());
  if (tiles.first == tiles.last) return;
  multiply(gate, model_.vector(layer, Model::kGateBias), w.inputs[0], tiles.first, tiles.last, gates_.get(),
           rows);
  multiply(up, model_.vector(layer, Model::kUpBias), w.inputs[1], tiles.first, tiles.last, up_.get(), rows);
  const size_t first = tiles.first * kTile, count = std::min(tiles.last * kTile, rows) - first;
  for (size_t i = 0; i < w.active.size; ++i)
    kernels_.gate(config_.activation, gates_.get() + i * rows + first, up_.get() + i * rows + first, count);
}

void Session::project_down(Worker& w, size_t layer) {
  const Matrix& down = model_.matrix(layer, Model::kDown);
  prepare(w, {&down}, [&](size_t i) { return gates_.get() + i * down.layout.columns; });
  const Range tiles = share(down.layout.tiles, w.thread, pool_.size());
  multiply(down, model_.vector(layer, Model::kDownBias), w.inputs[0], tiles.first, tiles.last, out_.get(),
           down.layout.rows);
}

void Session::project_logits(Worker& w, float* logits) {
  const Matrix& head = model_.head();
  const float* post_norm = model_.vector(config_.layers() - 1, Model::kPostMlpNorm);
  prepare(w, {&head}, [&](size_t i) { return advance(w, i, post_norm, model_.final_norm()); });
  const Range tiles = share(head.layout.tiles, w.thread, pool_.size());
  multiply(head, nullptr, w.inputs[0], tiles.first, tiles.last, logits, config_.vocab);
}

// ---- attention

// Norms and turns the heads of q and k, scales q, and moves k and v into the cache. Threads split heads
// first: positions of one head lie side by side there.
void Session::store_heads(Worker& w, size_t layer) {
  const Config& c = config_;
  const size_t d = c.head_dim, width = padded_head(d), heads = c.heads + 2 * c.kv_heads,
               count = tokens_.size();
  const float* q_norm = model_.vector(layer, Model::kQNorm);
  const float* k_norm = model_.vector(layer, Model::kKNorm);
  const Range mine = share(heads * count, w.thread, pool_.size());
  for (size_t i = mine.first; i < mine.last; ++i) {
    const size_t head = i / count, t = i % count;
    const Token& token = tokens_[t];
    float* x = qkv_.get() + (t * heads + head) * d;
    const bool is_q = head < c.heads, is_v = head >= c.heads + c.kv_heads;
    if (!is_v) {
      if (c.qk_norm) kernels_.rms_norm(x, is_q ? q_norm : k_norm, d, c.norm_eps, x);
      const float* cosines = angles_.get() + (c.rope_of[layer] * kChunk + t) * d;
      kernels_.rotate(x, cosines, cosines + d / 2, d / 2);
    }
    if (is_q) {
      kernels_.scale(x, c.attn_scale, d);
      continue;
    }
    const size_t kv = head - c.heads - (is_v ? c.kv_heads : 0), at = token.position % kPositions;
    uint16_t* block = token.slot->blocks[token.position / kPositions].get();
    uint16_t* keys = block + (layer * c.kv_heads + kv) * kPositions * (d + width);
    if (is_v) {
      kernels_.to_half(x, keys + kPositions * d + at * width, d);
    } else {
      kernels_.to_half(x, w.halves.get(), d);
      for (size_t channel = 0; channel < d; ++channel)
        keys[channel * kPositions + at] = w.halves.get()[channel];
    }
  }
}

// Threads split (key-value head, token, head of its group), so that a thread's queries share keys where they
// can.
void Session::attend(Worker& w, size_t layer) {
  const Config& c = config_;
  const size_t d = c.head_dim, width = padded_head(d), q_size = c.heads * d, group = c.heads / c.kv_heads;
  const size_t stride = q_size + 2 * c.kv_heads * d;
  const Range mine = share(c.heads * w.active.size, w.thread, pool_.size());
  const bool narrow = w.active.data == wanted_.data();
  for (size_t kv = 0; kv < c.kv_heads; ++kv) {
    size_t index = 0;  // of the run's first active token
    for (const Run& run : runs_) {
      const size_t count = narrow ? run.wanted : run.count, skipped = run.count - count;
      const size_t start = (kv * w.active.size + index) * group;
      const Range queries = overlap(mine, {start, start + count * group});
      if (queries.first < queries.last) {
        const AttendArgs args{run.slot->pointers.data(),
                              (layer * c.kv_heads + kv) * kPositions * (d + width),
                              d,
                              width,
                              group,
                              c.windows[layer],
                              run.slot->length + skipped,
                              qkv_.get() + (run.first + skipped) * stride + kv * group * d,
                              stride,
                              attended_.get() + index * q_size + kv * group * d,
                              q_size,
                              w.scratch.get()};
        kernels_.attend(args, queries.first - start, queries.last - start);
      }
      index += count;
    }
  }
}

}  // namespace paretobit
