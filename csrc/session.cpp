#include "session.h"

#include <algorithm>
#include <set>
#include <stdexcept>
#include <string>

namespace paretobit {
namespace {

void require(bool holds, const std::string& what) {
  if (!holds) throw std::invalid_argument(what);
}

size_t within(size_t value, size_t most, const char* name) {
  require(value >= 1 && value <= most, std::string(name) + " outside 1..." + std::to_string(most));
  return value;
}

const Model& sealed(const Model& model) {
  require(model.sealed(), "the model is not sealed");
  return model;
}

}  // namespace

Session::Session(const Model& model, const Kernels& kernels, size_t threads, bool int8, size_t context,
                 const CacheScheme& cache)
    : model_(sealed(model)),
      config_(model.config()),
      kernels_(kernels),
      int8_(int8),
      context_(within(context, config_.positions, "context")),
      shape_(cache, config_.layers(), config_.kv_heads, config_.head_dim),
      pool_(within(threads, kMostThreads, "threads")),
      scratch_(pool_.size()),
      sets_(make_sets()) {
  const Config& c = config_;
  const size_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  for (Scratch& scratch : scratch_) {
    scratch.normed = Buffer<float>(c.hidden);
    scratch.rotated = Buffer<float>(std::max({c.hidden, q, c.intermediate}));
    scratch.attend = Buffer<float>(attend_scratch(c.head_dim));
    scratch.halves = Buffer<uint16_t>(c.head_dim);
    if (shape_.coded) scratch.code = CodeScratch(c.head_dim);
  }
  x_ = Buffer<float>(kChunk * c.hidden);
  angles_ = Buffer<float>(c.ropes.size() * kChunk * c.head_dim);
  qkv_ = Buffer<float>(kChunk * (q + 2 * kv));
  attended_ = Buffer<float>(kChunk * q);
  gates_ = Buffer<float>(kChunk * c.intermediate);
  up_ = Buffer<float>(kChunk * c.intermediate);
  out_ = Buffer<float>(kChunk * c.hidden);
  tokens_.reserve(kChunk), runs_.reserve(kChunk), wanted_.reserve(kChunk);
  for (size_t i = 0; i < kChunk; ++i) every_.push_back(i);
}

// As many and as large as any stage needs: `prepare` hands them out in order, one a column order.
std::vector<Session::Set> Session::make_sets() const {
  struct Size {
    size_t codes = 0, blocks = 0, values = 0;
  };
  std::vector<Size> sizes;
  const auto stage = [&](std::initializer_list<const Matrix*> matrices) {
    std::vector<const Layout*> distinct;
    for (const Matrix* m : matrices) {
      const Layout& l = m->layout;
      const auto same = [&](const Layout* other) { return other->same_columns(l); };
      if (std::any_of(distinct.begin(), distinct.end(), same)) continue;
      distinct.push_back(&l);
      if (sizes.size() < distinct.size()) sizes.emplace_back();
      Size& size = sizes[distinct.size() - 1];
      if (quantizes(l))
        size.codes = std::max(size.codes, l.token_bytes);
      else
        size.values = std::max(size.values, l.padded);
      size.blocks = std::max(size.blocks, l.blocks);
    }
  };
  for (size_t i = 0; i < config_.layers(); ++i) {
    const auto of = [&](Model::MatrixRole role) { return &model_.matrix(i, role); };
    stage({of(Model::kQ), of(Model::kK), of(Model::kV)});
    stage({of(Model::kO)});
    stage({of(Model::kGate), of(Model::kUp)});
    stage({of(Model::kDown)});
  }
  stage({&model_.head().matrices[0]});  // of all bands
  std::vector<Set> sets;
  for (const Size& size : sizes)
    sets.push_back({Buffer<int8_t>(kChunk * size.codes), Buffer<float>(kChunk * size.blocks),
                    Buffer<float>(kChunk * size.values), Buffer<int32_t>(kChunk * size.blocks)});
  return sets;
}

size_t Session::open() {
  std::lock_guard<std::mutex> hold(mutex_);
  slots_.emplace(opened_, shape_);
  return opened_++;
}

size_t Session::fork(size_t id, size_t length) {
  std::lock_guard<std::mutex> hold(mutex_);
  const Cache& from = slot(id);
  require(length <= from.length(), "a sequence has no positions to share there");
  Cache made = from;
  made.truncate(length, kernels_);
  slots_.emplace(opened_, std::move(made));
  return opened_++;
}

void Session::close(size_t id) {
  std::lock_guard<std::mutex> hold(mutex_);
  require(slots_.erase(id) == 1, "the sequence is not open");
}

const Cache& Session::slot(size_t id) const {
  const auto found = slots_.find(id);
  require(found != slots_.end(), "the sequence is not open");
  return found->second;
}

size_t Session::length(size_t id) const {
  std::lock_guard<std::mutex> hold(mutex_);
  return slot(id).length();
}

void Session::truncate(size_t id, size_t length) {
  std::lock_guard<std::mutex> hold(mutex_);
  Cache& cache = slot(id);
  require(length <= cache.length(), "a sequence has no positions to forget there");
  cache.truncate(length, kernels_);
}

size_t Session::kv_bytes() const {
  std::lock_guard<std::mutex> hold(mutex_);
  std::map<const void*, size_t> known;
  for (const auto& entry : slots_) entry.second.add_bytes(known);
  size_t bytes = 0;
  for (const auto& block : known) bytes += block.second;
  return bytes;
}

void Session::check(const std::vector<Feed>& feeds, size_t logits_size) const {
  std::set<size_t> seen;
  size_t count = 0, wanted = 0;
  for (const Feed& feed : feeds) {
    const size_t size = feed.tokens.size;
    require(seen.insert(feed.slot).second, "a sequence stands twice in a step");
    require(size >= 1 && size <= kChunk - count, "a step takes 1..." + std::to_string(kChunk) + " tokens");
    require(feed.first <= size, "logits are wanted of tokens that do not come");
    require(size <= context_ - slot(feed.slot).length(), "the context is full");
    for (size_t i = 0; i < size; ++i)
      require(feed.tokens.data[i] >= 0 && size_t(feed.tokens.data[i]) < config_.vocab,
              "a token outside the vocabulary");
    count += size;
    wanted += size - feed.first;
  }
  require(logits_size == wanted * config_.vocab, "logits of the wrong size");
}

void Session::step(const std::vector<Feed>& feeds, float* logits, size_t logits_size) {
  std::lock_guard<std::mutex> hold(mutex_);
  check(feeds, logits_size);
  if (feeds.empty()) return;
  pool_.check_process();
  for (const Feed& feed : feeds) slot(feed.slot).reserve(feed.tokens.size);
  tokens_.clear(), runs_.clear(), wanted_.clear();
  for (const Feed& feed : feeds) {
    const Cache& s = slot(feed.slot);
    runs_.push_back({&s, tokens_.size(), feed.tokens.size, feed.tokens.size - feed.first});
    for (size_t i = 0; i < feed.tokens.size; ++i) {
      if (i >= feed.first) wanted_.push_back(tokens_.size());
      tokens_.push_back({feed.tokens.data[i], s.length() + i, &s});
    }
  }
  compute(logits);
  for (const Feed& feed : feeds) slot(feed.slot).append(feed.tokens.size);
}

}  // namespace paretobit
