// Keys and values of a sequence, in blocks of kPositions: in fp16, but of a small cache all between the first and the
// newest in a few bits. paretobit/kv.py has the definition.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <vector>

#include "kernels.h"
#include "rotation.h"

namespace paretobit {

// Zeroed memory that starts a cache line; the system hands it out as it is touched.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(size_t size) : memory_(std::calloc(size + kLine / sizeof(T), sizeof(T))) {
    if (!memory_) throw std::bad_alloc();
  }
  T* get() const {
    const uintptr_t past = reinterpret_cast<uintptr_t>(memory_.get()) % kLine;
    return static_cast<T*>(memory_.get()) + (kLine - past) % kLine / sizeof(T);
  }

 private:
  static constexpr size_t kLine = 64;
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  std::unique_ptr<void, Free> memory_;
};

// What a session is asked for. bits: 8, 4, 3 or 2, or 16 for fp16 alone, when the rest is unused; window: positions that
// stay in fp16 at least, a multiple of kPositions; rotation: of every head of queries, keys and values.
struct CacheScheme {
  int bits = 16;
  bool by_channel = false;
  size_t window = 0;
  std::optional<OwnedRotation> rotation;
};

// What all caches of a session share.
struct CacheShape {
  size_t layers, heads, head_dim, width;  // key-value heads
  std::optional<Coded> coded;             // none where all stays in fp16
  size_t recent = 0;                      // blocks before a token's own that it reads in fp16
  std::optional<OwnedRotation> rotation;

  // Throws std::invalid_argument on a scheme that cannot be.
  CacheShape(const CacheScheme& scheme, size_t layers, size_t heads, size_t head_dim);

  size_t head_size() const { return kPositions * (head_dim + width); }    // halves of a block
  size_t block_size() const { return layers * heads * head_size(); }      // halves
  size_t code_bytes() const { return coded ? layers * heads * coded->bytes : 0; }  // of a block
};

struct CodeScratch {  // of one thread
  Buffer<float> rows;
  Buffer<uint8_t> codes;

  CodeScratch() = default;
  explicit CodeScratch(size_t head_dim) : rows(kPositions * head_dim), codes(kPositions * head_dim) {}
};

// Copies share their blocks until one of them writes into one.
class Cache {
 public:
  explicit Cache(const CacheShape& shape) : shape_(&shape) {}

  size_t length() const { return length_; }
  // Adds the bytes of every block to those known by address.
  void add_bytes(std::map<const void*, size_t>& known) const;
  const uint16_t* const* blocks() const { return blocks_.pointers.data(); }
  const uint8_t* const* codes() const { return codes_.pointers.data(); }

  // Room for `count` more positions. Throws std::bad_alloc, and then has changed nothing that is read.
  void reserve(size_t count);
  // A head's halves of a block: keys (head_dim, kPositions), then values (kPositions, width).
  uint16_t* head(size_t block, size_t layer, size_t head) const;
  // Blocks [first, last) get their codes in the step that appends `count` positions: from then on they are read so.
  struct Range {
    size_t first, last;
  };
  Range due(size_t count) const;
  void encode(const Kernels& kernels, size_t block, size_t layer, size_t head, CodeScratch& scratch) const;
  // The positions are there; halves that no token reads any more go, but for a block: so many positions can be forgotten
  // again without a trace.
  void append(size_t count);
  // Forgets positions from `length` on. Halves that are needed again and have gone come back as their codes say.
  void truncate(size_t length, const Kernels& kernels);

 private:
  template <class T>
  struct Blocks {
    std::vector<std::shared_ptr<Buffer<T>>> buffers;
    std::vector<const T*> pointers;  // null where the buffer has gone

    void grow(size_t count, size_t size) {
      buffers.reserve(count), pointers.reserve(count);
      while (buffers.size() < count) {
        buffers.push_back(std::make_shared<Buffer<T>>(size));
        pointers.push_back(buffers.back()->get());
      }
    }
    void set(size_t at, std::shared_ptr<Buffer<T>> buffer) {
      pointers[at] = buffer ? buffer->get() : nullptr;
      buffers[at] = std::move(buffer);
    }
    void cut(size_t count) {
      if (count < buffers.size()) buffers.resize(count), pointers.resize(count);
    }
  };

  size_t coded_after(size_t length) const;
  void decode(const Kernels& kernels, size_t block, uint16_t* to) const;

  const CacheShape* shape_;
  size_t length_ = 0, coded_ = 0;  // blocks 1 … coded_ have codes
  Blocks<uint16_t> blocks_;
  Blocks<uint8_t> codes_;  // from block 1 on
};

}  // namespace paretobit
