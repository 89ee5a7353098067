#include "cache.h"

#include <algorithm>
#include <stdexcept>

#include "half.h"
#include "pack.h"

namespace paretobit {
namespace {

size_t blocks_for(size_t positions) { return (positions + kPositions - 1) / kPositions; }

void require(bool holds, const char* what) {
  if (!holds) throw std::invalid_argument(what);
}

Format format_of(int bits) {
  switch (bits) {
    case 8: return Format::k8;
    case 4: return Format::k4;
    case 3: return Format::k3;
    case 2: return Format::k2;
    default: throw std::invalid_argument("a key-value cache of " + std::to_string(bits) + " bits");
  }
}

uint16_t* halves(uint8_t* bytes) { return reinterpret_cast<uint16_t*>(bytes); }

}  // namespace

Coded::Coded(Format format, size_t head_dim, bool channels)
    : keys(format, kPositions, head_dim, head_dim), values(format, head_dim, kPositions, kPositions),
      by_channel(channels), levels(levels_of(format)), key_scales(keys.tiles * keys.tile_bytes),
      key_centres(key_scales + 2 * (channels ? head_dim : kPositions)),
      value_codes((key_centres + 2 * head_dim + 63) / 64 * 64),
      value_scales(value_codes + values.tiles * values.tile_bytes), bytes(value_scales + 2 * kPositions),
      ones(std::max(keys.tiles * keys.tile, values.tiles * values.tile), 0x3C00) {}

CacheShape::CacheShape(const CacheScheme& scheme, size_t layer_count, size_t head_count, size_t channels)
    : layers(layer_count), heads(head_count), head_dim(channels), width(padded_head(channels)) {
  if (scheme.bits == 16) return;
  require(head_dim <= kMostCodedHead, "heads too wide for a small key-value cache");
  require(scheme.window % kPositions == 0, "a window that is no multiple of 64 positions");
  require(!scheme.rotation || scheme.rotation->view().width == head_dim, "a rotation that does not fit the heads");
  coded.emplace(format_of(scheme.bits), head_dim, scheme.by_channel);
  recent = scheme.window / kPositions;
  rotation = scheme.rotation;
}

void Cache::add_bytes(std::map<const void*, size_t>& known) const {
  for (const uint16_t* block : blocks_.pointers)
    if (block) known[block] = shape_->block_size() * sizeof(uint16_t);
  for (const uint8_t* block : codes_.pointers) known[block] = shape_->code_bytes();
}

void Cache::reserve(size_t count) {
  blocks_.grow(blocks_for(length_ + count), shape_->block_size());
  codes_.grow(coded_after(length_ + count), shape_->code_bytes());
  // What is written into must be this sequence's own: of the blocks that others may share, only the last is not full.
  const size_t at = length_ / kPositions;
  if (blocks_.buffers[at].use_count() == 1) return;
  auto own = std::make_shared<Buffer<uint16_t>>(shape_->block_size());
  std::copy_n(blocks_.pointers[at], shape_->block_size(), own->get());
  blocks_.set(at, std::move(own));
}

uint16_t* Cache::head(size_t block, size_t layer, size_t head) const {
  return blocks_.buffers[block]->get() + (layer * shape_->heads + head) * shape_->head_size();
}

// How many blocks the last of `length` positions reads as codes.
size_t Cache::coded_after(size_t length) const {
  const size_t newest = length ? (length - 1) / kPositions : 0;
  return shape_->coded && newest > shape_->recent + 1 ? newest - shape_->recent - 1 : 0;
}

Cache::Range Cache::due(size_t count) const { return {coded_ + 1, std::max(coded_, coded_after(length_ + count)) + 1}; }

void Cache::encode(const Kernels& kernels, size_t block, size_t layer, size_t index, CodeScratch& scratch) const {
  const Coded& c = *shape_->coded;
  const size_t d = shape_->head_dim, n = kPositions;
  const uint16_t *keys = head(block, layer, index), *values = keys + n * d;
  uint8_t *to = codes_.buffers[block - 1]->get() + (layer * shape_->heads + index) * c.bytes, *codes = scratch.codes.get();
  uint16_t *scales = halves(to + c.key_scales), *centres = halves(to + c.key_centres);
  float *rows = scratch.rows.get(), channel[kPositions];
  for (size_t k = 0; k < d; ++k) {
    float sum = 0;
    for (size_t p = 0; p < n; ++p) sum += channel[p] = half_to_float(keys[k * n + p]);
    sum /= float(n);
    kernels.to_half(&sum, centres + k, 1);
    const float centre = half_to_float(centres[k]);
    for (size_t p = 0; p < n; ++p) rows[c.by_channel ? k * n + p : p * d + k] = channel[p] - centre;
  }
  if (c.by_channel)
    kernels.round_rows({rows, d, n, c.levels, scales, codes, 1, d});
  else
    kernels.round_rows({rows, n, d, c.levels, scales, codes, d, 1});
  pack(c.keys, codes, to, 1);
  for (size_t p = 0; p < n; ++p)
    for (size_t k = 0; k < d; ++k) rows[p * d + k] = half_to_float(values[p * shape_->width + k]);
  kernels.round_rows({rows, n, d, c.levels, halves(to + c.value_scales), codes, 1, n});
  pack(c.values, codes, to + c.value_codes, 1);
}

// Every head of a block, as halves.
void Cache::decode(const Kernels& kernels, size_t block, uint16_t* to) const {
  const Coded& c = *shape_->coded;
  const size_t d = shape_->head_dim, width = shape_->width;
  const float zero = 0.5f * float(c.levels - 1);
  std::vector<uint8_t> found(kPositions * d);
  std::vector<float> row(kPositions);  // of a channel
  std::vector<uint16_t> rounded(kPositions);
  uint8_t* from = codes_.buffers[block - 1]->get();
  for (size_t head = 0; head < shape_->layers * shape_->heads; ++head, from += c.bytes, to += shape_->head_size()) {
    const uint16_t *key_scales = halves(from + c.key_scales), *centres = halves(from + c.key_centres);
    const uint16_t* value_scales = halves(from + c.value_scales);
    unpack(c.keys, from, found.data(), 1);
    for (size_t k = 0; k < d; ++k) {
      for (size_t p = 0; p < kPositions; ++p) {
        const float step = half_to_float(key_scales[c.by_channel ? k : p]);
        row[p] = step * (float(found[p * d + k]) - zero) + half_to_float(centres[k]);
      }
      kernels.to_half(row.data(), to + k * kPositions, kPositions);
    }
    unpack(c.values, from + c.value_codes, found.data(), 1);
    for (size_t k = 0; k < d; ++k) {
      for (size_t p = 0; p < kPositions; ++p)
        row[p] = half_to_float(value_scales[p]) * (float(found[k * kPositions + p]) - zero);
      kernels.to_half(row.data(), rounded.data(), kPositions);
      for (size_t p = 0; p < kPositions; ++p) to[kPositions * d + p * width + k] = rounded[p];
    }
  }
}

void Cache::append(size_t count) {
  length_ += count;
  coded_ = std::max(coded_, coded_after(length_));
  for (size_t block = coded_after(length_); block-- > 1 && blocks_.pointers[block];)
    blocks_.set(block, nullptr);
}

void Cache::truncate(size_t length, const Kernels& kernels) {
  const size_t whole = length / kPositions, kept = blocks_for(length);  // the next token belongs to block `whole`
  for (size_t block = whole > shape_->recent ? whole - shape_->recent : 0; block < kept; ++block) {
    if (blocks_.pointers[block]) continue;
    auto halves = std::make_shared<Buffer<uint16_t>>(shape_->block_size());
    decode(kernels, block, halves->get());
    blocks_.set(block, std::move(halves));
  }
  length_ = length;
  coded_ = std::min(coded_, whole ? whole - 1 : 0);
  blocks_.cut(kept), codes_.cut(coded_);
}

}  // namespace paretobit
