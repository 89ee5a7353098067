// Sequences being continued: their key-value caches, the threads, and the way through the decoder.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <map>
#include <mutex>
#include <vector>

#include "cache.h"
#include "kernels.h"
#include "model.h"
#include "pool.h"

namespace paretobit {

// New tokens of one sequence. Logits are wanted after tokens `first` and later; none where that is
// tokens.size.
struct Feed {
  size_t slot = 0;
  Span<int32_t> tokens;
  size_t first = 0;
};

class Session {
 public:
  static constexpr size_t kChunk = 64;  // most tokens of a step, all sequences together
  static constexpr size_t kMostThreads = 1024;

  // The model is sealed and outlives the session. int8: activations in eight bits, otherwise float32;
  // context: most positions of a sequence; cache: how keys and values are kept. Throws std::invalid_argument on what cannot
  // be, std::bad_alloc.
  Session(const Model& model, const Kernels& kernels, size_t threads, bool int8, size_t context,
          const CacheScheme& cache = {});

  size_t threads() const { return pool_.size(); }

  // A new sequence; the other functions throw std::invalid_argument on one that is not open.
  size_t open();
  // A new sequence that begins with the first `length` tokens of another, as `truncate` would leave them. Both keep the
  // same blocks of the cache until one of them writes into one.
  size_t fork(size_t slot, size_t length);
  void close(size_t slot);
  size_t length(size_t slot) const;
  // Forgets the positions from `length` on. In a small cache the newest of those that stay are afterwards what their codes
  // say, where more than kPositions are forgotten: a later token's numbers then differ a little.
  void truncate(size_t slot, size_t length);
  size_t kv_bytes() const;

  // Appends tokens to sequences, each named at most once. logits: (tokens whose logits are wanted, vocab), in
  // the order of `feeds`. Throws std::invalid_argument (tokens, context, sizes) and std::bad_alloc, and then
  // has changed nothing.
  void step(const std::vector<Feed>& feeds, float* logits, size_t logits_size);

 private:
  struct Token {
    int32_t id;
    size_t position;
    const Cache* cache;
  };
  struct Run {  // a sequence's tokens of this step, and how many of the last have their logits wanted
    const Cache* cache;
    size_t first, count, wanted;
  };
  // Activations that a matrix multiplies, in eight bits or spread out.
  struct Set {
    Buffer<int8_t> codes;
    Buffer<float> scales, values;
    Buffer<int32_t> sums;
  };
  struct Scratch {  // of one thread
    Buffer<float> normed, rotated, attend;
    Buffer<uint16_t> halves;
    CodeScratch code;
  };
  struct Product {
    const Matrix& matrix;
    const Inputs& inputs;
    const float* bias;  // or null
    float* out;         // (active, stride)
    size_t stride;
  };

  const Cache& slot(size_t id) const;
  Cache& slot(size_t id) { return const_cast<Cache&>(static_cast<const Session*>(this)->slot(id)); }
  std::vector<Set> make_sets() const;
  void check(const std::vector<Feed>& feeds, size_t logits_size) const;
  bool quantizes(const Layout& layout) const { return int8_ && !is_float(layout.format); }

  void compute(float* logits);
  void compute_angles();
  const float* enter(size_t i, const float* norm, Scratch& scratch);
  const float* advance(size_t i, const float* post_norm, const float* norm, float* normed);
  void project_heads(size_t layer);
  void store_heads(size_t layer);
  void store_head(size_t layer, size_t head, size_t t, Scratch& scratch);
  void turn(float* head, Scratch& scratch, bool back) const;
  void encode_heads(size_t layer);
  void attend(size_t layer);
  void attend(size_t layer, size_t first, size_t last, Scratch& scratch);
  void project_attended(size_t layer);
  void project_gates(size_t layer);
  void project_down(size_t layer);
  void project_logits(float* logits);

  template <class Source>
  void prepare(std::initializer_list<const Matrix*> matrices, const OwnedRotation* rotation, Source&& source);
  void multiply(const std::vector<Product>& products);
  void multiply(const Product& product, size_t first, size_t last) const;
  void multiply_rows(const Product& product, size_t first, size_t last) const;
  void look_up(size_t token, float* out) const;
  template <class Work>
  void split(size_t count, size_t bytes, Work&& work);

  const Model& model_;
  const Config& config_;
  const Kernels& kernels_;
  const bool int8_;
  const size_t context_;
  const CacheShape shape_;
  mutable std::mutex mutex_;
  std::map<size_t, Cache> slots_;
  size_t opened_ = 0;
  Pool pool_;
  std::vector<Scratch> scratch_;  // one a thread

  // Of the step in progress.
  std::vector<Token> tokens_;
  std::vector<Run> runs_;
  std::vector<size_t> ends_;           // of a stage's parts
  std::vector<size_t> every_, wanted_;  // indices into tokens_
  Span<size_t> active_;  // tokens that go on: every one; after the last layer's cache is filled, the wanted
  std::vector<Set> sets_;
  Inputs inputs_[3];          // of the matrices of a stage, out of sets_
  Buffer<float> x_;           // (tokens, hidden): the residual stream
  Buffer<float> angles_;      // (ropes, tokens, 2, head_dim / 2): cosines, then sines
  Buffer<float> qkv_;         // (tokens, heads + 2 kv_heads, head_dim)
  Buffer<float> attended_;    // (active, heads, head_dim)
  Buffer<float> gates_, up_;  // (active, intermediate)
  Buffer<float> out_;         // (active, hidden): what attention or MLP adds to the stream
};

}  // namespace paretobit
