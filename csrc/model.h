// A decoder's dimensions and weights. Everything that comes in is checked here, whoever sends it; what is
// inside can be trusted. Matrices stay where they are, so whoever adds one keeps it alive; vectors are
// copied.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels.h"
#include "rotation.h"
#include "span.h"

namespace paretobit {

// Rotary embedding: radians a position of each of the head_dim / 2 channel pairs, and a factor on cosine and
// sine.
struct Rope {
  std::vector<double> radians;
  double factor = 1.0;
};

// As paretobit/arch/spec.py. A window is the number of newest positions a token attends to.
struct Config {
  size_t hidden = 0, intermediate = 0, heads = 0, kv_heads = 0, head_dim = 0, vocab = 0, positions = 0;
  float norm_eps = 0, norm_offset = 0, attn_scale = 1, embed_scale = 1;
  Activation activation = Activation::kSilu;
  bool tied = false, qkv_bias = false, o_bias = false, mlp_bias = false, qk_norm = false, post_norms = false;
  std::vector<Rope> ropes;
  std::vector<size_t> rope_of, windows;  // one entry a layer

  size_t layers() const { return windows.size(); }
};

// A matrix as a file stores it; docs/FORMAT.md has the sizes. Scales except in the float formats, zero points
// only where the grid stores them; without, twice_zero is twice the grid's own. Tables only of trellises.
struct Stored {
  Format format = Format::kF32;
  size_t rows = 0, columns = 0, group = 0;  // group = columns for one scale a row
  int twice_zero = 0;
  Span<uint8_t> codes;
  Span<uint16_t> scale;
  Span<uint8_t> zero;
  Span<uint8_t> table = {};  // of a trellis
};

// A matrix in bands of rows, each in a format of its own.
struct Bands {
  std::vector<Matrix> matrices;
  size_t rows = 0;
};

class Model {
 public:
  enum MatrixRole { kQ, kK, kV, kO, kGate, kUp, kDown, kMatrixRoles };
  enum VectorRole {
    kAttnNorm,
    kMlpNorm,
    kPostAttnNorm,
    kPostMlpNorm,
    kQNorm,
    kKNorm,
    kQBias,
    kKBias,
    kVBias,
    kOBias,
    kGateBias,
    kUpBias,
    kDownBias,
    kVectorRoles
  };

  enum Tap { kAttnIn, kOIn, kMlpIn, kDownIn, kTaps };

  // These five throw std::invalid_argument, which names what is wrong, and then change nothing.
  explicit Model(Config config);
  // role: "embed" or "head" (layer 0), or "q", "k", "v", "o", "gate", "up", "down" of a layer. Embedding and head may come
  // in bands of rows, the first one first, whose columns lie alike.
  void add_matrix(const std::string& role, size_t layer, const Stored& stored);
  // role: "final_norm" (layer 0), or of a layer "attn_norm", "mlp_norm", "post_attn_norm", "post_mlp_norm",
  // "q_norm", "k_norm", "q_bias", "k_bias", "v_bias", "o_bias", "gate_bias", "up_bias", "down_bias". Norms
  // come as stored.
  void add_vector(const std::string& role, size_t layer, Span<float> values);
  // The basis in which the matrices that multiply an activation are stored; the activation is rotated before. tap:
  // "head_in" (layer 0; with a tied head rows that are looked up are rotated back), "embed_out" (layer 0; only that, and
  // only of an embedding of its own), or "attn_in", "o_in", "mlp_in", "down_in" of a layer. Others are not rotated.
  void add_rotation(const std::string& tap, size_t layer, OwnedRotation rotation);
  // Checks that nothing is missing; nothing can be added afterwards.
  void seal();

  bool sealed() const { return sealed_; }
  const Config& config() const { return config_; }
  const Bands& embedding() const { return embed_; }
  const Bands& head() const { return config_.tied ? embed_ : head_; }
  const Matrix& matrix(size_t layer, MatrixRole role) const { return *layers_[layer].matrices[role]; }
  // Null where nothing is rotated.
  const OwnedRotation* rotation(size_t layer, Tap tap) const { return pointer(layers_[layer].rotations[tap]); }
  const OwnedRotation* head_rotation() const { return pointer(head_in_); }
  const OwnedRotation* embedding_rotation() const { return pointer(config_.tied ? head_in_ : embed_out_); }
  const float* final_norm() const { return final_norm_.data(); }
  const float* vector(size_t layer, VectorRole role) const {  // null where the decoder has none
    const std::vector<float>& values = layers_[layer].vectors[role];
    return values.empty() ? nullptr : values.data();
  }

 private:
  struct Layer {
    std::optional<Matrix> matrices[kMatrixRoles];
    std::vector<float> vectors[kVectorRoles];
    std::optional<OwnedRotation> rotations[kTaps];
  };

  static const OwnedRotation* pointer(const std::optional<OwnedRotation>& rotation) {
    return rotation ? &*rotation : nullptr;
  }
  void add_band(Bands& bands, const std::string& role, const Stored& stored);
  size_t length(VectorRole role) const;  // 0 where the decoder has no such vector

  Config config_;
  std::vector<Layer> layers_;
  Bands embed_, head_;
  std::optional<OwnedRotation> head_in_, embed_out_;
  std::vector<float> final_norm_;
  bool sealed_ = false;
};

}  // namespace paretobit
