// Seeded inputs that every platform makes alike: integers, and floats that are exact quotients of integers by powers
// of two. No libm, no distributions of the standard library: their results differ between platforms.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

namespace paretobit::test {

// FNV-1a over bytes; 64 bits.
class Digest {
 public:
  template <class T>
  void add(const T* values, size_t count) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(values);
    for (size_t i = 0; i < count * sizeof(T); ++i) value_ = (value_ ^ bytes[i]) * 0x100000001b3u;
  }
  template <class T>
  void add(const std::vector<T>& values) {
    add(values.data(), values.size());
  }
  uint64_t value() const { return value_; }

 private:
  uint64_t value_ = 0xcbf29ce484222325u;
};

// splitmix64, seeded with a name, so that no case depends on those before it.
class Random {
 public:
  explicit Random(const std::string& seed) {
    Digest digest;
    digest.add(seed.data(), seed.size());
    state_ = digest.value();
  }
  uint64_t next() {
    uint64_t x = state_ += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
  }
  uint32_t below(uint32_t n) { return uint32_t((next() >> 32) * n >> 32); }
  // A multiple of 2^-23 in [-1, 1).
  float symmetric() { return float(int32_t(next() >> 40) - (1 << 23)) * 0x1p-23f; }
  // The same with a magnitude of 2^-12 ... 2^12: sums depend on their order.
  float spread() { return symmetric() * power(int(below(25)) - 12); }

  // 2^e, exact, -126 <= e <= 127.
  static float power(int e) {
    const uint32_t bits = uint32_t(e + 127) << 23;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
  }

 private:
  uint64_t state_;
};

}  // namespace paretobit::test
