// Fuzzed bytes as numbers; zeros when they have run out.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace paretobit::test {

class Reader {
 public:
  Reader(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  bool empty() const { return size_ == 0; }
  template <class T>
  T number() {
    T value{};
    const size_t count = size_ < sizeof value ? size_ : sizeof value;
    if (count) std::memcpy(&value, data_, count);
    data_ += count, size_ -= count;
    return value;
  }
  uint8_t byte() { return number<uint8_t>(); }
  bool coin() { return byte() & 1; }
  size_t below(size_t n) { return byte() % n; }
  // Mostly 1...most, seldom anything at all.
  size_t size(size_t most) {
    const uint8_t b = byte();
    return b < 252 ? b % most + 1 : number<size_t>();
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

// Memory of exactly so many elements, beside which a sanitizer sees every access.
template <class T>
class Exact {
 public:
  explicit Exact(size_t size) : size_(size), data_(new T[size]()) {}
  T* data() const { return data_.get(); }
  size_t size() const { return size_; }
  T& operator[](size_t i) const { return data_[i]; }
  void fill(Reader& in) {
    for (size_t i = 0; i < size_; ++i) data_[i] = in.number<T>();
  }

 private:
  size_t size_;
  std::unique_ptr<T[]> data_;
};

inline void require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

}  // namespace paretobit::test

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
