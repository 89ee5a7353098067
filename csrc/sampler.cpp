#include "sampler.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>

namespace paretobit {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr size_t kBlock = 32;  // values that share a maximum

typedef float Four __attribute__((vector_size(16)));
typedef int32_t FourBits __attribute__((vector_size(16)));
typedef float Half __attribute__((vector_size(8)));
typedef double Two __attribute__((vector_size(16)));
typedef uint64_t TwoBits __attribute__((vector_size(16)));

// Weights are exp((logit - greatest) / temperature) as integers, in units of 2^-40: integers add up to
// the same sum in any order, so neither the selection nor the draw depends on how a library partitions.
constexpr int kUnits = 40;
constexpr float kFarthest = -29;  // exp(-29) * 2^40 < 1/2: rounds to no weight

// weights[0..4) of four values; returns their sums in pairs. exp is 2^n times Taylor's sixth power of
// |r| <= ln(2) / 2, right to 3e-7 of itself. A logit, a float of a few tens, is no better known.
inline TwoBits weigh_four(const float* values, float greatest, float inverse, uint64_t* weights) {
  Four x;
  std::memcpy(&x, values, 16);
  x = (x - greatest) * inverse;
  const Four farthest = kFarthest - Four{}, magic = 0x1.8p23f - Four{};  // magic's last place is worth 1
  x = x > farthest ? x : farthest;
  const Four shifted = x * 1.44269504f + magic;
  const Four n = shifted - magic;
  const Four r = (x - n * 0.693359375f) + n * 2.12194440e-4f;  // ln(2) in two: n times the first is exact
  Four p = r * (1.0f / 720) + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  const FourBits scaled = (FourBits)p + ((FourBits)shifted << 23) + (kUnits << 23);
  Half halves[2];
  std::memcpy(halves, &scaled, 16);
  TwoBits sum{};
  for (int i = 0; i < 2; ++i) {  // a double above 2^52 holds an integer: to nearest, ties to even
    const TwoBits w = (TwoBits)(__builtin_convertvector(halves[i], Two) + 0x1p52) & 0xFFFFFFFFFFFFFu;
    std::memcpy(weights + 2 * i, &w, 16);
    sum += w;
  }
  return sum;
}

// weights[0..count) of a block; returns their sum.
uint64_t weigh_block(const float* values, size_t count, float greatest, float inverse, uint64_t* weights) {
  TwoBits sum{};
  size_t i = 0;
  for (; i + 4 <= count; i += 4) sum += weigh_four(values + i, greatest, inverse, weights + i);
  if (i < count) {
    float rest[4] = {-kInfinity, -kInfinity, -kInfinity, -kInfinity};
    uint64_t made[4];
    std::copy(values + i, values + count, rest);
    sum += weigh_four(rest, greatest, inverse, made);
    std::copy(made, made + (count - i), weights + i);
  }
  return sum[0] + sum[1];
}

// The high half of the product: x / 2^64 of y.
uint64_t share(uint64_t x, uint64_t y) {
  const uint64_t x0 = x & 0xFFFFFFFFu, x1 = x >> 32, y0 = y & 0xFFFFFFFFu, y1 = y >> 32;
  const uint64_t middle = x1 * y0 + (x0 * y0 >> 32);
  return x1 * y1 + (middle >> 32) + ((x0 * y1 + (middle & 0xFFFFFFFFu)) >> 32);
}

// Floats that are not NaN, as integers of the same order, whose maximum compilers vectorize; its own inverse.
inline int32_t ordered(int32_t bits) { return bits ^ (bits >> 31 & 0x7FFFFFFF); }

float greatest_of(const float* x, size_t count) {
  int32_t most = std::numeric_limits<int32_t>::min();
  for (size_t i = 0; i < count; ++i) {
    int32_t bits;
    std::memcpy(&bits, x + i, 4);
    most = std::max(most, ordered(bits));
  }
  most = ordered(most);
  float value;
  std::memcpy(&value, &most, 4);
  return value;
}

}  // namespace

uint64_t Generator::next() {
  uint64_t z = state_ += 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return z ^ z >> 31;
}

void Sampler::start(const int64_t* prompt, size_t count) {
  seen_.clear();
  if (sampling_.repetition == 1) return;
  for (size_t i = 0; i < count; ++i) seen_.emplace(uint32_t(prompt[i]), 0);
}

size_t Sampler::sample(const float* logits, size_t count) {
  prepare(logits, count);
  size_t at = 0;
  if (sampling_.temperature == 0) {
    at = best();
  } else {
    uint64_t rest = share(generator_.next(), total_);
    size_t block = 0;
    while (rest >= sums_[block]) rest -= sums_[block++];
    at = block * kBlock;
    while (rest >= weights_[at]) rest -= weights_[at++];
  }
  const uint32_t token = token_at(at);
  ++seen_[token];
  return token;
}

void Sampler::distribution(const float* logits, size_t count, double* out) {
  prepare(logits, count);
  std::fill(out, out + count, 0.0);
  if (sampling_.temperature == 0) {
    out[best()] = 1;
    return;
  }
  for (size_t i = 0; i < kept_; ++i) out[token_at(i)] = double(weights_[i]) / double(total_);
}

void Sampler::prepare(const float* logits, size_t count) {
  if (values_.size() < count) {
    tokens_.resize(count);
    values_.resize(count);
    weights_.resize(count);
    sums_.resize((count + kBlock - 1) / kBlock);
  }
  kept_ = count;
  listed_ = false;
  int wrong = 0;
  for (size_t i = 0; i < count; ++i) {
    values_[i] = logits[i] + 0.0f;  // -0 becomes 0, to which it is equal
    wrong |= !(logits[i] < kInfinity);
  }
  if (wrong) {
    const size_t at = std::find_if(logits, logits + count, [](float x) { return !(x < kInfinity); }) - logits;
    throw std::invalid_argument("the logit of token " + std::to_string(at) +
                                (logits[at] == kInfinity ? " is infinite" : " is not a number"));
  }
  adjust();
  find_maxima();
  const float greatest = greatest_of(maxima_.data(), maxima_.size());
  if (greatest == -kInfinity) throw std::invalid_argument("the logits rule out every token");
  if (sampling_.temperature == 0) return;
  keep_top_k();
  weigh(greatest);
  keep_top_p();
  keep_min_p();
}

void Sampler::adjust() {
  const auto change = [&](uint32_t token, auto&& formula) {
    if (token >= kept_ || values_[token] == -kInfinity) return;
    const double x = formula(double(values_[token]));
    const float finite = float(std::clamp(x, -double(kLargest), double(kLargest))) + 0.0f;
    values_[token] = x == -kInfinity ? -kInfinity : finite;
  };
  for (const auto& entry : sampling_.bias) change(entry.first, [&](double x) { return x + entry.second; });
  if (sampling_.repetition == 1 && sampling_.presence == 0 && sampling_.frequency == 0) return;
  for (const auto& entry : seen_) {
    const double times = entry.second;
    const double fewer = times > 0 ? sampling_.presence + sampling_.frequency * times : 0;
    change(entry.first, [&](double x) {
      return (x > 0 ? x / sampling_.repetition : x * sampling_.repetition) - fewer;
    });
  }
}

size_t Sampler::best() const {
  const float greatest = greatest_of(maxima_.data(), maxima_.size());
  const size_t block = std::find(maxima_.begin(), maxima_.end(), greatest) - maxima_.begin();
  return std::find(values_.begin() + block * kBlock, values_.end(), greatest) - values_.begin();
}

void Sampler::find_maxima() {
  maxima_.resize((kept_ + kBlock - 1) / kBlock);
  for (size_t i = 0; i < maxima_.size(); ++i)
    maxima_[i] = greatest_of(&values_[i * kBlock], std::min(kBlock, kept_ - i * kBlock));
}

void Sampler::weigh(float greatest) {
  // Never infinite, which times 0 would be no number.
  const float inverse = float(std::min(1 / std::max(sampling_.temperature, 1e-300), double(kLargest)));
  total_ = 0;
  for (size_t i = 0; i < maxima_.size(); ++i) {
    const size_t at = i * kBlock;
    sums_[i] = weigh_block(&values_[at], std::min(kBlock, kept_ - at), greatest, inverse, &weights_[at]);
    total_ += sums_[i];
  }
}

void Sampler::keep_top_k() {
  const size_t k = sampling_.top_k;
  if (k == 0 || k >= kept_) return;
  // k blocks have a maximum of at least the k-th greatest maximum, so at least k values are no less than it.
  float least = -kInfinity;
  if (k <= maxima_.size()) {
    sorted_ = maxima_;
    std::nth_element(sorted_.begin(), sorted_.begin() + (k - 1), sorted_.end(), std::greater<float>());
    least = sorted_[k - 1];
  }
  places_.clear();
  each([&](size_t block) { return maxima_[block] >= least; },
       [&](size_t i) {
         if (values_[i] >= least) places_.push_back({values_[i], token_at(i), 0});
       });
  std::nth_element(places_.begin(), places_.begin() + (k - 1), places_.end(), before);
  keep_up_to(places_[k - 1]);
  find_maxima();
}

void Sampler::keep_top_p() {
  if (sampling_.top_p == 1) return;
  // At least 1: a share too small to count still leaves the best token.
  const uint64_t target = std::clamp(uint64_t(sampling_.top_p * double(total_)), uint64_t(1), total_);
  // Tokens that have no more than their equal share of what may go weigh, together, no more than may go.
  const uint64_t light = (total_ - target) / kept_;
  places_.clear();
  each([&](size_t block) { return sums_[block] > light; },
       [&](size_t i) {
         if (weights_[i] > light) places_.push_back({values_[i], token_at(i), weights_[i]});
       });
  // The last token to keep is in [first, last), and those before first weigh less than the target.
  auto first = places_.begin(), last = places_.end();
  uint64_t passed = 0;
  while (last - first > 1) {
    const auto middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, before);
    const auto add = [](uint64_t sum, const Place& place) { return sum + place.weight; };
    const uint64_t weight = std::accumulate(first, middle, passed, add);
    if (weight >= target) {
      last = middle;
    } else {
      first = middle;
      passed = weight;
    }
  }
  keep_up_to(*first);
}

void Sampler::keep_up_to(const Place last) {
  keep([&](size_t block) { return maxima_[block] >= last.value; },
       [&](size_t i) { return values_[i] >= last.value && !before(last, {values_[i], token_at(i), 0}); });
}

void Sampler::keep_min_p() {
  const double least = sampling_.min_p * double(uint64_t(1) << kUnits);
  if (least == 0) return;
  keep([&](size_t block) { return double(sums_[block]) >= least; },
       [&](size_t i) { return double(weights_[i]) >= least; });
}

template <class Open, class Visit>
void Sampler::each(Open&& open, Visit&& visit) {
  const size_t count = kept_;
  for (size_t first = 0; first < count; first += kBlock) {
    if (!open(first / kBlock)) continue;
    const size_t last = std::min(count, first + kBlock);
    for (size_t i = first; i < last; ++i) visit(i);
  }
}

template <class Open, class Test>
void Sampler::keep(Open&& open, Test&& test) {
  size_t kept = 0;
  total_ = 0;
  each(open, [&](size_t i) {
    if (!test(i)) return;
    // What is kept moves to the front: no block is overwritten before it was looked at.
    tokens_[kept] = token_at(i);
    values_[kept] = values_[i];
    weights_[kept] = weights_[i];
    if (kept % kBlock == 0) sums_[kept / kBlock] = 0;
    sums_[kept / kBlock] += weights_[kept];
    total_ += weights_[kept];
    ++kept;
  });
  kept_ = kept;
  listed_ = true;
}

}  // namespace paretobit
