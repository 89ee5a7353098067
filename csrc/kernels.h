// The kernels of every ISA behind one table of function pointers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "matrix.h"
#include "pack.h"
#include "rotation.h"

namespace paretobit {

enum ZeroKind { kStored = 0, kTwos = 1, kMid = 2 };
constexpr int kZeros = 5;  // stored zero points tried around the one that fits the group's range

// Inputs and outputs of the scale search; shapes as in paretobit/scales.py. Sizes are checked by the caller.
struct SearchArgs {
  const float* w;           // (rows, columns)
  const float* importance;  // (columns,) or null
  size_t rows, columns, group;
  int levels;
  ZeroKind kind;
  float offset;         // zero point of grids that store none
  const float* coarse;  // factors on the scale at which the range fits; a multiple of 16 of them
  size_t coarse_count;
  const float* fine;  // 16 factors around the best
  uint16_t* scale;    // fp16 (rows, groups)
  uint8_t* zero;      // (rows, groups), or null where the grid stores none
  float* error;       // (rows, groups) weighted squared error
};

// One block of GPTQ's column loop; T is float, or double for tests. Sizes are checked by the caller.
template <class T>
struct FeedbackArgs {
  T* rest;  // (rows, width), columns in rounding order; those of the block are changed
  size_t rows, width, start, count;
  const T* upper;  // (count, count), the block of the inverse Hessian's factor
  const T* pull;   // (count, count) or null: GPTAQ's term
  const T* scale;  // (rows, groups)
  const T* zero;   // (rows, groups), or null where the grid stores none
  T offset;
  size_t groups;
  const int64_t* group_of;  // (count,) group of each column of the block
  int levels;
  uint8_t* codes;  // (rows, width)
  T* errors;       // (rows, count)
  T* moved;        // (rows, count), the columns as they were rounded; null without pull
};

constexpr size_t kTrellisTile = tile_rows(Format::kT1);  // rows of a ring
constexpr size_t kMostTrellisBlock = 128;  // columns of a block of the column loop

// The same for the trellis grid (paretobit/trellis.py), or codes of columns by themselves. Sizes are checked by the caller.
struct TrellisArgs {
  const float* rest;  // (rows, width), columns in rounding order
  size_t rows, width, start, count;
  const float* upper;    // (count, count), or null: no feedback
  const float* pull;     // (count, count) or null
  const float* scale;    // (rows,)
  const float* weight;   // (rows,) of a squared error in levels
  const uint8_t* table;  // (32,)
  int twice_bits;  // of a code, on average
  uint8_t* codes;  // (rows, width)
  float* errors;   // (rows, count), or null without feedback
  float* moved;    // (rows, count), or null without pull
};

// Fake quantization: a matrix in training as it would be stored, and the gradients through it. Sizes are checked by the
// caller; lengths are in steps of the grid, whose levels lie around 0.
struct FakeArgs {
  const float* w;      // (rows, columns)
  const float* scale;  // (rows, groups), none 0
  size_t columns, group;
  float lowest, highest;  // levels; both end in one half, or neither does
  float* out;             // (rows, columns)
};

struct FakeGradientArgs {
  FakeArgs forward;         // `out`: the gradient at w
  const float* upstream;    // (rows, columns)
  float low, high;          // between which gradients pass to w
  float under, over;        // what a scale's gradient counts of a weight below and above them
  float by_level, by_step;  // and of one between them: its level and itself
  float* to_scale;          // (rows, groups)
};

// Logits of a model and its original, (rows, columns) floats, or bf16 as uint16_t.
struct DivergenceArgs {
  const void *wanted, *found;
  size_t columns;
  bool bf16;
  float factor;
  float* loss;     // (rows,) KL divergence of `found` from `wanted`, nats
  void* gradient;  // (rows, columns) like the logits: factor times that at `found`
};

// Floats: two rows of whole lanes.
constexpr size_t divergence_scratch(size_t columns) { return 2 * ((columns + 15) / 16 * 16); }

constexpr size_t kProductSets = 2, kProductTokens = 8;  // sets of 16 rows

// out (tokens, 16 · sets) = activations (tokens, 4 · quads) times codes, (quads, sets, 16 rows, 4 columns).
struct ProductArgs {
  const uint8_t* codes;
  const int8_t* activations;
  const int32_t* sums;  // (tokens,) of the activations
  size_t quads;
  int32_t* out;
};

enum class Activation : uint8_t { kSilu, kGeluTanh };

constexpr size_t kPositions = 64;  // of a key-value cache block
constexpr size_t kQueries = 32;    // whose attention is worked out together

// Floats of a head in the key-value cache, whole lanes.
constexpr size_t padded_head(size_t head_dim) { return (head_dim + 15) / 16 * 16; }

constexpr size_t kMostCodedHead = 1024;  // channels of a head that a small cache takes

// A head's block in a few bits (paretobit/kv.py): packed as weights are, keys as a matrix (kPositions, head_dim) and values
// as one (head_dim, kPositions), on a grid around 0, keys less a centre a channel. Behind keys' codes lie their fp16
// scales, one a position or one a channel, and the centres; behind values' codes their scales, one a position.
struct Coded {
  Layout keys, values;
  bool by_channel;
  int levels;
  size_t key_scales, key_centres, value_codes, value_scales, bytes;  // where they begin, and the bytes of all
  std::vector<uint16_t> ones;  // fp16: the scales of rows where columns have them

  Coded(Format format, size_t head_dim, bool by_channel);
};

// Rows (rows, count) rounded to a grid of `levels` around 0; element i of row r gets codes[r * row + i * step].
struct RoundArgs {
  const float* x;
  size_t rows, count;
  int levels;
  uint16_t* scale;  // fp16 (rows,)
  uint8_t* codes;
  size_t row, step;
};

// Queries of consecutive tokens of one sequence, which share a key-value head: query i is head i % group of token
// i / group. A cache block holds fp16 keys (head_dim, kPositions), then values (kPositions, width), at `offset`.
struct AttendArgs {
  const uint16_t* const* blocks;
  size_t offset;
  size_t head_dim, width;  // width = padded_head(head_dim)
  size_t group;            // query heads that share the key-value head
  size_t window;           // newest positions that a token attends to
  size_t position;         // of token 0
  const float* q;          // head h of token t at q + t * q_stride + h * head_dim; scores are q · k, nothing else
  size_t q_stride;
  float* out;  // likewise
  size_t out_stride;
  float* scratch;  // attend_scratch(head_dim) floats

  // Of a small cache: tokens read blocks as codes, block b at codes[b - 1] + codes_offset, but for the first one, their
  // own and the `recent` before it. int8: queries and weights that meet codes are rounded to eight bits.
  const Coded* coded = nullptr;
  const uint8_t* const* codes = nullptr;
  size_t codes_offset = 0, recent = 0;
  bool int8 = true;
};

// A block of halves as floats; the states of queries; queries, weights and products that meet codes.
constexpr size_t attend_scratch(size_t head_dim) {
  return kPositions * (head_dim + padded_head(head_dim)) + kQueries * (32 + padded_head(head_dim)) +
         kQueries * (padded_head(head_dim) + 2 * kPositions + head_dim);
}

struct Kernels {
  const char* name;
  void (*search_rows)(const SearchArgs&, size_t first, size_t last);
  void (*feed_back)(const FeedbackArgs<float>&, size_t first, size_t last);
  void (*feed_back_double)(const FeedbackArgs<double>&, size_t first, size_t last);

  void (*fake)(const FakeArgs&, size_t first, size_t last);
  void (*fake_gradients)(const FakeGradientArgs&, size_t first, size_t last);

  void (*divergence)(const DivergenceArgs&, float* scratch, size_t first, size_t last);

  // Tiles of 64 rows, each by itself.
  void (*trellis)(const TrellisArgs&, size_t first, size_t last);

  // One token's activations x (columns,) in int8: codes (padded,), scales (blocks,) and sums (blocks,), those `step` apart.
  // A block's scale is max|x| / 127, codes are rounded to nearest, ties to even.
  void (*quantize)(const Layout&, const float* x, int8_t* codes, float* scales, int32_t* sums, size_t step);
  // The same in float32: x in padded column order, zeros in between.
  void (*spread)(const Layout&, const float* x, float* values);
  // out[token * stride + row] = the product of the rows of tiles [first, last) with every token of `inputs`.
  void (*multiply)(const Matrix&, const Inputs& inputs, size_t first, size_t last, float* out, size_t stride);
  // One row, dequantized, (columns,): an embedding looked up.
  void (*row)(const Matrix&, size_t row, float* out);
  // The exclusive or of all 64-bit words of `bytes`, a multiple of 512: memory read as fast as loads can take it.
  uint64_t (*read_words)(const uint8_t* from, size_t bytes);
  // A plain loop of this ISA's int8 products.
  void (*products)(const ProductArgs&);

  // The rest of a decoder (layers.inl), each on `count` channels of one token unless said otherwise.
  // out = x / sqrt(mean x^2 + eps) * weight
  void (*rms_norm)(const float* x, const float* weight, size_t count, float eps, float* out);
  // x += y
  void (*add)(float* x, const float* y, size_t count);
  // x *= factor
  void (*scale)(float* x, float factor, size_t count);
  // gates = activation(gates) * up
  void (*gate)(Activation, float* gates, const float* up, size_t count);
  // Turns channel pairs (i, i + half) of a head by the angles whose cosines and sines are given, (half,) each.
  void (*rotate)(float* head, const float* cosines, const float* sines, size_t half);
  // To fp16, ties to even; beyond 65504 comes infinity.
  void (*to_half)(const float* from, uint16_t* to, size_t count);
  void (*round_rows)(const RoundArgs&);
  // The input (width,) of a linear layer to the basis of its rotated weights, and back; out is another array.
  void (*rotate_inputs)(const Rotation&, const float* x, float* out);
  void (*unrotate_inputs)(const Rotation&, const float* x, float* out);
  // Causal softmax attention of the queries [first, last).
  void (*attend)(const AttendArgs&, size_t first, size_t last);
};

// What this machine can run, best first; the last is always "scalar".
std::vector<std::string> available();

// The kernels of one ISA; throws std::invalid_argument on a name that is not available here.
const Kernels& kernels(const std::string& isa);

}  // namespace paretobit
