// A step's way through the decoder. One thread leads; all share the rows of matrices, and heads and tokens where there
// are enough of them.
#include <algorithm>

#include "angles.h"
#include "session.h"

namespace paretobit {
namespace {

constexpr size_t kWorthSharing = 1 << 15;  // bytes; a thread needs some microseconds for them, as for being told

struct Range {
  size_t first, last;
};

Range overlap(Range a, Range b) { return {std::max(a.first, b.first), std::min(a.last, b.last)}; }

}  // namespace

// Calls work(range, thread) on ranges that cover `count` things, each of which touches `bytes`. They become smaller and
// smaller: long ones keep memory streaming, short ones let all threads end together.
template <class Work>
void Session::split(size_t count, size_t bytes, Work&& work) {
  const size_t threads = pool_.size(), least = std::max<size_t>(1, kWorthSharing / std::max<size_t>(1, bytes));
  if (threads == 1 || count <= least) {
    if (count) work(Range{0, count}, 0);
    return;
  }
  ends_.clear();
  for (size_t end = 0; end < count; ends_.push_back(end))
    end += std::min(count - end, std::max(least, (count - end) / (2 * threads)));
  pool_.run(ends_.size(), [&](size_t part, size_t thread) {
    work(Range{part ? ends_[part - 1] : 0, ends_[part]}, thread);
  });
}

void Session::compute(float* logits) {
  active_ = {every_.data(), tokens_.size()};
  compute_angles();
  for (size_t layer = 0; layer < config_.layers(); ++layer) {
    project_heads(layer);
    store_heads(layer);
    if (shape_.coded) encode_heads(layer);
    if (layer + 1 == config_.layers()) active_ = {wanted_.data(), wanted_.size()};
    if (active_.size == 0) return;
    attend(layer);
    project_attended(layer);
    project_gates(layer);
    project_down(layer);
  }
  project_logits(logits);
}

void Session::compute_angles() {
  const size_t half = config_.head_dim / 2;
  for (size_t r = 0; r < config_.ropes.size(); ++r) {
    const Rope& rope = config_.ropes[r];
    split(tokens_.size(), half * 256, [&](Range mine, size_t) {  // a cosine and sine cost as much as so many bytes
      for (size_t t = mine.first; t < mine.last; ++t) {
        float* cosines = angles_.get() + (r * kChunk + t) * 2 * half;
        for (size_t i = 0; i < half; ++i) {
          double cosine, sine;
          cosine_sine(double(tokens_[t].position) * rope.radians[i], cosine, sine);
          cosines[i] = float(rope.factor * cosine);
          cosines[half + i] = float(rope.factor * sine);
        }
      }
    });
  }
}

// ---- activations

void Session::look_up(size_t token, float* out) const {
  for (const Matrix& band : model_.embedding().matrices) {
    if (token < band.layout.rows) return kernels_.row(band, token, out);
    token -= band.layout.rows;
  }
}

// The token's embedding, normed for the first layer.
const float* Session::enter(size_t i, const float* norm, Scratch& scratch) {
  float* x = x_.get() + i * config_.hidden;
  float* normed = scratch.normed.get();
  if (const OwnedRotation* rotation = model_.embedding_rotation()) {
    look_up(size_t(tokens_[i].id), scratch.rotated.get());
    kernels_.unrotate_inputs(rotation->view(), scratch.rotated.get(), x);
  } else {
    look_up(size_t(tokens_[i].id), x);
  }
  if (config_.embed_scale != 1.0f) kernels_.scale(x, config_.embed_scale, config_.hidden);
  kernels_.rms_norm(x, norm, config_.hidden, config_.norm_eps, normed);
  return normed;
}

// Adds to the stream what the last stage made of active token i, and norms it for the next.
const float* Session::advance(size_t i, const float* post_norm, const float* norm, float* normed) {
  const size_t hidden = config_.hidden;
  float* x = x_.get() + active_.data[i] * hidden;
  const float* out = out_.get() + i * hidden;
  if (post_norm) {
    kernels_.rms_norm(out, post_norm, hidden, config_.norm_eps, normed);
    out = normed;
  }
  kernels_.add(x, out, hidden);
  kernels_.rms_norm(x, norm, hidden, config_.norm_eps, normed);
  return normed;
}

// Makes inputs_, one a matrix, of what source(i, scratch) gives for active token i, rotated where the matrices are; each
// column order only once.
template <class Source>
void Session::prepare(std::initializer_list<const Matrix*> matrices, const OwnedRotation* rotation, Source&& source) {
  const Layout* layouts[3];
  size_t sets = 0, matrix = 0;
  const size_t step = room_for(active_.size);
  for (const Matrix* m : matrices) {
    const Layout& l = m->layout;
    size_t s = 0;
    while (s < sets && !layouts[s]->same_columns(l)) ++s;
    if (s == sets) layouts[sets++] = &l;
    const Set& set = sets_[s];
    Inputs in{active_.size};
    if (quantizes(l))
      in.codes = set.codes.get(), in.scales = set.scales.get(), in.sums = set.sums.get(), in.step = step;
    else
      in.values = set.values.get();
    inputs_[matrix++] = in;
  }
  split(active_.size, layouts[0]->padded * 16, [&](Range mine, size_t thread) {
    for (size_t i = mine.first; i < mine.last; ++i) {
      const float* y = source(i, scratch_[thread]);
      if (rotation) {
        kernels_.rotate_inputs(rotation->view(), y, scratch_[thread].rotated.get());
        y = scratch_[thread].rotated.get();
      }
      for (size_t s = 0; s < sets; ++s) {
        const Layout& l = *layouts[s];
        const Set& set = sets_[s];
        if (quantizes(l))
          kernels_.quantize(l, y, set.codes.get() + i * l.token_bytes, set.scales.get() + i, set.sums.get() + i, step);
        else
          kernels_.spread(l, y, set.values.get() + i * l.padded);
      }
    }
  });
}

// ---- matrices

void Session::multiply(const Product& p, size_t first, size_t last) const {
  kernels_.multiply(p.matrix, p.inputs, first, last, p.out, p.stride);
  if (!p.bias) return;
  const Layout& l = p.matrix.layout;
  const size_t row = first * l.tile, count = std::min(last * l.tile, l.rows) - row;
  for (size_t i = 0; i < p.inputs.count; ++i) kernels_.add(p.out + i * p.stride + row, p.bias + row, count);
}

// Rows that begin where a tile does.
void Session::multiply_rows(const Product& p, size_t first, size_t last) const {
  const size_t tile = p.matrix.layout.tile;
  multiply(p, first / tile, (last + tile - 1) / tile);
}

// The tiles of all matrices in a row.
void Session::multiply(const std::vector<Product>& products) {
  size_t tiles = 0, bytes = 0;
  for (const Product& p : products) {
    tiles += p.matrix.layout.tiles;
    bytes = std::max(bytes, p.matrix.layout.tile_bytes);
  }
  split(tiles, bytes * active_.size, [&](Range mine, size_t) {
    size_t before = 0;
    for (const Product& p : products) {
      const size_t count = p.matrix.layout.tiles;
      const Range own = overlap(mine, {before, before + count});
      if (own.first < own.last) multiply(p, own.first - before, own.last - before);
      before += count;
    }
  });
}

void Session::project_heads(size_t layer) {
  const Matrix& q = model_.matrix(layer, Model::kQ);
  const Matrix& k = model_.matrix(layer, Model::kK);
  const Matrix& v = model_.matrix(layer, Model::kV);
  const float* norm = model_.vector(layer, Model::kAttnNorm);
  const float* post_norm = layer ? model_.vector(layer - 1, Model::kPostMlpNorm) : nullptr;
  prepare({&q, &k, &v}, model_.rotation(layer, Model::kAttnIn), [&](size_t i, Scratch& scratch) {
    return layer ? advance(i, post_norm, norm, scratch.normed.get()) : enter(i, norm, scratch);
  });
  const size_t q_rows = q.layout.rows, kv_rows = k.layout.rows, stride = q_rows + 2 * kv_rows;
  float* out = qkv_.get();
  multiply({{q, inputs_[0], model_.vector(layer, Model::kQBias), out, stride},
            {k, inputs_[1], model_.vector(layer, Model::kKBias), out + q_rows, stride},
            {v, inputs_[2], model_.vector(layer, Model::kVBias), out + q_rows + kv_rows, stride}});
}

void Session::project_attended(size_t layer) {
  const Matrix& o = model_.matrix(layer, Model::kO);
  prepare({&o}, model_.rotation(layer, Model::kOIn),
          [&](size_t i, Scratch&) { return attended_.get() + i * o.layout.columns; });
  multiply({{o, inputs_[0], model_.vector(layer, Model::kOBias), out_.get(), o.layout.rows}});
}

// Gates are applied where they are made: the same thread makes the same rows of both.
void Session::project_gates(size_t layer) {
  const Matrix& gate = model_.matrix(layer, Model::kGate);
  const Matrix& up = model_.matrix(layer, Model::kUp);
  const float* post_norm = model_.vector(layer, Model::kPostAttnNorm);
  const float* norm = model_.vector(layer, Model::kMlpNorm);
  prepare({&gate, &up}, model_.rotation(layer, Model::kMlpIn),
          [&](size_t i, Scratch& scratch) { return advance(i, post_norm, norm, scratch.normed.get()); });
  const size_t rows = gate.layout.rows, bytes = gate.layout.tile_bytes + up.layout.tile_bytes;
  const Product gates{gate, inputs_[0], model_.vector(layer, Model::kGateBias), gates_.get(), rows};
  const Product ups{up, inputs_[1], model_.vector(layer, Model::kUpBias), up_.get(), rows};
  const size_t step = std::max(gate.layout.tile, up.layout.tile);  // rows: whole tiles of both
  split((rows + step - 1) / step, bytes * active_.size, [&](Range mine, size_t) {
    const size_t first = mine.first * step, last = std::min(mine.last * step, rows), count = last - first;
    multiply_rows(gates, first, last);
    multiply_rows(ups, first, last);
    for (size_t i = 0; i < active_.size; ++i)
      kernels_.gate(config_.activation, gates_.get() + i * rows + first, up_.get() + i * rows + first, count);
  });
}

void Session::project_down(size_t layer) {
  const Matrix& down = model_.matrix(layer, Model::kDown);
  prepare({&down}, model_.rotation(layer, Model::kDownIn),
          [&](size_t i, Scratch&) { return gates_.get() + i * down.layout.columns; });
  multiply({{down, inputs_[0], model_.vector(layer, Model::kDownBias), out_.get(), down.layout.rows}});
}

void Session::project_logits(float* logits) {
  const std::vector<Matrix>& bands = model_.head().matrices;
  const float* post_norm = model_.vector(config_.layers() - 1, Model::kPostMlpNorm);
  prepare({&bands[0]}, model_.head_rotation(), [&](size_t i, Scratch& scratch) {
    return advance(i, post_norm, model_.final_norm(), scratch.normed.get());
  });
  std::vector<Product> products;
  for (const Matrix& band : bands) {
    products.push_back({band, inputs_[0], nullptr, logits, config_.vocab});
    logits += band.layout.rows;
  }
  multiply(products);
}

// ---- attention

// Norms and turns the heads of q and k, scales q, and moves k and v into the cache, of a small one rotated as q is then.
// Split by heads first: the positions of one head lie side by side there.
void Session::store_heads(size_t layer) {
  const size_t heads = config_.heads + 2 * config_.kv_heads, count = tokens_.size();
  split(heads * count, config_.head_dim * 16, [&](Range mine, size_t thread) {
    for (size_t i = mine.first; i < mine.last; ++i)
      store_head(layer, i / count, i % count, scratch_[thread]);
  });
}

void Session::store_head(size_t layer, size_t head, size_t t, Scratch& scratch) {
  const Config& c = config_;
  const size_t d = c.head_dim, width = padded_head(d);
  const bool is_q = head < c.heads, is_v = head >= c.heads + c.kv_heads;
  float* x = qkv_.get() + (t * (c.heads + 2 * c.kv_heads) + head) * d;
  if (!is_v) {
    if (c.qk_norm) {
      const float* norm = model_.vector(layer, is_q ? Model::kQNorm : Model::kKNorm);
      kernels_.rms_norm(x, norm, d, c.norm_eps, x);
    }
    const float* cosines = angles_.get() + (c.rope_of[layer] * kChunk + t) * d;
    kernels_.rotate(x, cosines, cosines + d / 2, d / 2);
  }
  if (shape_.rotation) turn(x, scratch, false);
  if (is_q) return kernels_.scale(x, c.attn_scale, d);
  const Token& token = tokens_[t];
  const size_t kv = head - c.heads - (is_v ? c.kv_heads : 0), at = token.position % kPositions;
  uint16_t* keys = token.cache->head(token.position / kPositions, layer, kv);
  if (is_v) return kernels_.to_half(x, keys + kPositions * d + at * width, d);
  kernels_.to_half(x, scratch.halves.get(), d);
  for (size_t channel = 0; channel < d; ++channel) keys[channel * kPositions + at] = scratch.halves.get()[channel];
}

// Into the basis in which a small cache keeps heads, or back.
void Session::turn(float* head, Scratch& scratch, bool back) const {
  float* turned = scratch.rotated.get();
  (back ? kernels_.unrotate_inputs : kernels_.rotate_inputs)(shape_.rotation->view(), head, turned);
  std::copy_n(turned, config_.head_dim, head);
}

void Session::encode_heads(size_t layer) {
  for (const Run& run : runs_) {
    const Cache::Range due = run.cache->due(run.count);
    split((due.last - due.first) * config_.kv_heads, kWorthSharing, [&](Range mine, size_t thread) {
      for (size_t i = mine.first; i < mine.last; ++i)
        run.cache->encode(kernels_, due.first + i / config_.kv_heads, layer, i % config_.kv_heads,
                          scratch_[thread].code);
    });
  }
}

void Session::attend(size_t layer) {
  size_t seen = 0;
  for (size_t i = 0; i < active_.size; ++i)
    seen += std::min(tokens_[active_.data[i]].position + 1, config_.windows[layer]);
  // On average; a query's two products with a position cost about as much as reading so many bytes.
  const size_t bytes = seen / active_.size * config_.head_dim * 4;
  // Heads that share keys stay together where that leaves no thread without work: each part reads all its keys, which takes
  // about as long as one query more.
  const size_t groups = config_.kv_heads * active_.size, group = config_.heads / config_.kv_heads;
  const auto part_of = [&](size_t parts) { return (group + parts - 1) / parts; };
  const auto rounds = [&](size_t parts) { return (groups * parts + pool_.size() - 1) / pool_.size() * (part_of(parts) + 1); };
  size_t parts = 1;
  for (size_t more = 2; more <= group; ++more)
    if (rounds(more) < rounds(parts)) parts = more;
  const size_t together = part_of(parts);
  const auto start = [&](size_t part) { return part / parts * group + std::min(part % parts * together, group); };
  split(groups * parts, bytes * together, [&](Range mine, size_t thread) {
    attend(layer, start(mine.first), start(mine.last), scratch_[thread]);
  });
}

// Queries [first, last) of all in the order (key-value head, token, head of its group): those beside each other share
// keys where they can.
void Session::attend(size_t layer, size_t first, size_t last, Scratch& scratch) {
  const Config& c = config_;
  const size_t d = c.head_dim, width = padded_head(d), group = c.heads / c.kv_heads;
  const size_t q_size = c.heads * d, stride = q_size + 2 * c.kv_heads * d;
  const bool all = active_.data == every_.data();
  for (size_t kv = 0; kv < c.kv_heads; ++kv) {
    size_t index = 0;  // of the run's first active token
    for (const Run& run : runs_) {
      const size_t count = all ? run.count : run.wanted, skipped = run.count - count;
      const size_t start = (kv * active_.size + index) * group;
      const Range queries = overlap({first, last}, {start, start + count * group});
      if (queries.first < queries.last) {
        AttendArgs args;
        args.blocks = run.cache->blocks();
        args.offset = (layer * c.kv_heads + kv) * kPositions * (d + width);
        args.head_dim = d, args.width = width, args.group = group;
        args.window = c.windows[layer];
        args.position = run.cache->length() + skipped;
        args.q = qkv_.get() + (run.first + skipped) * stride + kv * group * d;
        args.q_stride = stride;
        args.out = attended_.get() + index * q_size + kv * group * d;
        args.out_stride = q_size;
        args.scratch = scratch.attend.get();
        args.coded = shape_.coded ? &*shape_.coded : nullptr;
        args.codes = run.cache->codes();
        args.codes_offset = shape_.code_bytes() / (c.layers() * c.kv_heads) * (layer * c.kv_heads + kv);
        args.recent = shape_.recent;
        args.int8 = int8_;
        kernels_.attend(args, queries.first - start, queries.last - start);
        for (size_t i = queries.first - start; shape_.rotation && i < queries.last - start; ++i)
          turn(args.out + i / group * q_size + i % group * d, scratch, true);
      }
      index += count;
    }
  }
}

}  // namespace paretobit
