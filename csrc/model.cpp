#include "model.h"

#include <cmath>
#include <stdexcept>
#include <utility>

#include "half.h"

namespace paretobit {
namespace {

// As in paretobit/arch/resolve.py: an order of magnitude above any published decoder, and no product
// overflows.
constexpr size_t kMostHidden = size_t(1) << 18, kMostIntermediate = size_t(1) << 20,
                 kMostLayers = size_t(1) << 12, kMostHeads = size_t(1) << 12, kMostHeadDim = size_t(1) << 13,
                 kMostVocab = size_t(1) << 24, kMostPositions = size_t(1) << 30;
constexpr double kMostRadians = 1e6;
constexpr size_t kLeastGroup = 16;

constexpr const char* kMatrixNames[] = {"q", "k", "v", "o", "gate", "up", "down"};
constexpr const char* kTapNames[] = {"attn_in", "o_in", "mlp_in", "down_in"};
constexpr const char* kVectorNames[] = {"attn_norm", "mlp_norm", "post_attn_norm", "post_mlp_norm", "q_norm",
                                        "k_norm",    "q_bias",   "k_bias",         "v_bias",        "o_bias",
                                        "gate_bias", "up_bias",  "down_bias"};

void require(bool holds, const std::string& what) {
  if (!holds) throw std::invalid_argument(what);
}

void require_size(size_t value, size_t most, const char* name) {
  require(value >= 1 && value <= most, std::string(name) + " outside 1..." + std::to_string(most));
}

void require_real(double value, double least, double most, const char* name) {
  require(value >= least && value <= most, std::string(name) + " is out of range");  // NaN is
}

template <size_t n>
size_t find(const char* const (&names)[n], const std::string& role) {
  for (size_t i = 0; i < n; ++i)
    if (role == names[i]) return i;
  throw std::invalid_argument("unknown role '" + role + "'");
}

bool is_norm(Model::VectorRole role) { return role < Model::kQBias; }

bool aligned(const void* data, size_t bytes) { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }

template <class T>
void require_span(const Span<T>& span, size_t size, const char* name) {
  require(span.data && span.size == size, std::string(name) + " of " + std::to_string(span.size) +
                                              " elements where " + std::to_string(size) + " are needed");
  require(aligned(span.data, alignof(T)), std::string(name) + " do not lie aligned");
}

bool finite(const Span<uint16_t>& halves) {
  bool all = true;  // without leaving early, so that the compiler takes many at once
  for (size_t i = 0; i < halves.size; ++i) all &= half_is_finite(halves.data[i]);
  return all;
}

Matrix checked(const Stored& s, size_t rows, size_t columns) {
  require(int(s.format) < kFormats, "unknown format");
  require(s.rows == rows && s.columns == columns,
          "shape (" + std::to_string(s.rows) + ", " + std::to_string(s.columns) + ") where (" +
              std::to_string(rows) + ", " + std::to_string(columns) + ") is needed");
  if (is_float(s.format)) {
    const Layout layout(s.format, rows, columns, columns);
    require_span(s.codes, rows * columns * float_bytes(s.format), "values");
    require(aligned(s.codes.data, float_bytes(s.format)), "values do not lie aligned");
    require(!s.scale.data && !s.zero.data && !s.table.data, "scales, zero points or a table of a matrix of floats");
    return {layout, s.codes.data};
  }
  require(s.group == columns || (s.group >= kLeastGroup && s.group < columns),
          "groups of an impossible size");
  if (is_trellis(s.format)) {
    require(s.group == columns && !s.zero.data, "groups or zero points of a trellis");
    require_span(s.table, kTable, "tables");
    require(is_table(s.table.data), "a table with levels above 127");
  } else {
    require(!s.table.data, "a table without a trellis");
  }
  const Layout layout(s.format, rows, columns, s.group);
  require_span(s.codes, layout.tiles * layout.tile_bytes, "codes");
  require_span(s.scale, layout.tiles * layout.groups * layout.tile, "scales");
  require(finite(s.scale), "scales that are not finite");
  if (s.zero.data)
    require_span(s.zero, layout.tiles * layout.groups * zero_bytes(s.format), "zero points");
  else
    require(s.twice_zero >= 1 && s.twice_zero <= 254, "a grid's zero point outside 0.5...127");
  return {layout, s.codes.data, s.scale.data, s.zero.data, s.zero.data ? 0 : s.twice_zero, s.table.data};
}

}  // namespace

Model::Model(Config config) : config_(std::move(config)) {
  const Config& c = config_;
  require_size(c.hidden, kMostHidden, "hidden");
  require_size(c.intermediate, kMostIntermediate, "intermediate");
  require_size(c.heads, kMostHeads, "heads");
  require_size(c.kv_heads, kMostHeads, "kv_heads");
  require_size(c.head_dim, kMostHeadDim, "head_dim");
  require_size(c.vocab, kMostVocab, "vocab");
  require_size(c.positions, kMostPositions, "positions");
  require_size(c.layers(), kMostLayers, "layers");
  require(c.heads % c.kv_heads == 0, "kv_heads do not divide heads");
  require(c.head_dim % 2 == 0, "head_dim is odd");
  require_real(c.norm_eps, 0.0, 1.0, "norm_eps");
  require_real(c.norm_offset, 0.0, 1.0, "norm_offset");
  require_real(c.attn_scale, 0.0, 1e6, "attn_scale");
  require_real(c.embed_scale, 0.0, 1e6, "embed_scale");
  require(c.activation <= Activation::kGeluTanh, "unknown activation");
  require(c.rope_of.size() == c.layers(), "a rope for every layer is needed");
  for (size_t window : c.windows) require_size(window, kMostPositions, "window");
  for (size_t rope : c.rope_of) require(rope < c.ropes.size(), "a layer with an unknown rope");
  for (const Rope& rope : c.ropes) {
    require(rope.radians.size() == c.head_dim / 2, "a rope that does not fit head_dim");
    require_real(rope.factor, 0.0, 1e6, "a rope's factor");
    for (double radians : rope.radians) require_real(radians, 0.0, kMostRadians, "a rope's frequency");
  }
  layers_.resize(c.layers());
}

void Model::add_matrix(const std::string& role, size_t layer, const Stored& stored) {
  const Config& c = config_;
  const size_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  const size_t rows[] = {q, kv, kv, c.hidden, c.intermediate, c.intermediate, c.hidden};
  const size_t columns[] = {c.hidden, c.hidden, c.hidden, q, c.hidden, c.hidden, c.intermediate};
  require(!sealed_, "the model is sealed");
  const bool top = role == "embed" || role == "head";
  require(layer < (top ? 1 : c.layers()), "a layer that the model does not have");
  require(role != "head" || !c.tied, "a head in a model whose embedding is one");
  if (top) return add_band(role == "embed" ? embed_ : head_, role, stored);
  const size_t which = find(kMatrixNames, role);
  std::optional<Matrix>& at = layers_[layer].matrices[which];
  require(!at, "given twice: '" + role + "'");
  at = checked(stored, rows[which], columns[which]);
}

void Model::add_band(Bands& bands, const std::string& role, const Stored& stored) {
  require(bands.rows < config_.vocab, "given twice: '" + role + "'");
  const size_t left = config_.vocab - bands.rows;
  require(stored.rows >= 1 && stored.rows <= left,
          "'" + role + "': " + std::to_string(stored.rows) + " rows where " + std::to_string(left) + " are missing");
  const Matrix band = checked(stored, stored.rows, config_.hidden);
  require(bands.matrices.empty() || bands.matrices[0].layout.same_columns(band.layout),
          "'" + role + "': bands whose columns do not lie alike");
  bands.matrices.push_back(band);
  bands.rows += stored.rows;
}

size_t Model::length(VectorRole role) const {
  const Config& c = config_;
  const size_t q = c.heads * c.head_dim, kv = c.kv_heads * c.head_dim;
  switch (role) {
    case kAttnNorm:
    case kMlpNorm: return c.hidden;
    case kPostAttnNorm:
    case kPostMlpNorm: return c.post_norms ? c.hidden : 0;
    case kQNorm:
    case kKNorm: return c.qk_norm ? c.head_dim : 0;
    case kQBias: return c.qkv_bias ? q : 0;
    case kKBias:
    case kVBias: return c.qkv_bias ? kv : 0;
    case kOBias: return c.o_bias ? c.hidden : 0;
    case kGateBias:
    case kUpBias: return c.mlp_bias ? c.intermediate : 0;
    case kDownBias: return c.mlp_bias ? c.hidden : 0;
    default: return 0;
  }
}

void Model::add_vector(const std::string& role, size_t layer, Span<float> values) {
  require(!sealed_, "the model is sealed");
  const bool top = role == "final_norm";
  require(layer < (top ? 1 : config_.layers()), "a layer that the model does not have");
  const VectorRole which = top ? kAttnNorm : VectorRole(find(kVectorNames, role));
  std::vector<float>& at = top ? final_norm_ : layers_[layer].vectors[which];
  require(at.empty(), "given twice: '" + role + "'");
  require(length(which) > 0, "the decoder has no '" + role + "'");
  require_span(values, length(which), "values");
  at.assign(values.data, values.data + values.size);
  if (is_norm(which))
    for (float& weight : at) weight += config_.norm_offset;
}

void Model::add_rotation(const std::string& tap, size_t layer, OwnedRotation rotation) {
  const Config& c = config_;
  const size_t widths[] = {c.hidden, c.heads * c.head_dim, c.hidden, c.intermediate};
  require(!sealed_, "the model is sealed");
  const bool head = tap == "head_in", top = head || tap == "embed_out";
  require(layer < (top ? 1 : c.layers()), "a layer that the model does not have");
  require(!top || head || !c.tied, "a rotation of its own for an embedding that is the head");
  const size_t which = top ? 0 : find(kTapNames, tap);
  std::optional<OwnedRotation>& at = top ? (head ? head_in_ : embed_out_) : layers_[layer].rotations[which];
  require(!at, "given twice: '" + tap + "'");
  require(rotation.view().width == (top ? c.hidden : widths[which]), "a rotation that does not fit '" + tap + "'");
  at = std::move(rotation);
}

void Model::seal() {
  require(embed_.rows == config_.vocab && head().rows == config_.vocab && !final_norm_.empty(),
          "embedding, head or final norm is missing");
  for (const Layer& layer : layers_) {
    for (size_t i = 0; i < kMatrixRoles; ++i)
      require(layer.matrices[i].has_value(), std::string("missing: '") + kMatrixNames[i] + "'");
    for (size_t i = 0; i < kVectorRoles; ++i)
      require(layer.vectors[i].size() == length(VectorRole(i)),
              std::string("missing: '") + kVectorNames[i] + "'");
  }
  sealed_ = true;
}

}  // namespace paretobit
