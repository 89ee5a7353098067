// From one token's logits to the next token, the same on every machine for the same seed.
//
// Order, as in Hugging Face's generate: bias, penalties, temperature, top-k, top-p, min-p. The temperature
// comes before the truncations, so that top-p and min-p cut the distribution that is drawn from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

namespace paretobit {

// Ranges are checked by the caller.
struct Sampling {
  double temperature = 0;  // 0: the greatest logit, and of equal ones the lowest token
  size_t top_k = 0;        // only the k best; 0: all
  double top_p = 1;        // only the fewest best that together have this probability, (0, 1]
  double min_p = 0;        // only those at least this times as probable as the best, [0, 1]
  double repetition = 1;   // a positive logit is divided by it, a negative one multiplied: prompt and answer
  double presence = 0;     // subtracted once from each token of the answer
  double frequency = 0;    // subtracted for every time that a token is in the answer
  std::vector<std::pair<uint32_t, double>> bias;  // added to the logit of a token
  uint64_t seed = 0;
};

// SplitMix64: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
class Generator {
 public:
  explicit Generator(uint64_t seed) : state_(seed) {}
  uint64_t next();

 private:
  uint64_t state_;
};

class Sampler {
 public:
  static constexpr size_t kMostTokens = size_t(1) << 23;  // of a vocabulary: sums of weights stay below 2^64

  explicit Sampler(Sampling sampling) : sampling_(std::move(sampling)), generator_(sampling_.seed) {}

  // A new answer begins, to this prompt. The generator goes on.
  void start(const int64_t* prompt, size_t count);

  // The next token of the answer; one step of the generator unless greedy. Throws std::invalid_argument on
  // logits that are NaN or +infinity, or all -infinity. 0 < count <= kMostTokens.
  size_t sample(const float* logits, size_t count);

  // The probability of each token to be drawn by sample(), (count,).
  void distribution(const float* logits, size_t count, double* out);

 private:
  // A token in the order of preference: by falling logit, equal ones by rising token.
  struct Place {
    float value;
    uint32_t token;
    uint64_t weight;
  };
  static bool before(const Place& a, const Place& b) {
    return a.value != b.value ? a.value > b.value : a.token < b.token;
  }

  void prepare(const float* logits, size_t count);
  void adjust();
  void find_maxima();
  size_t best() const;
  void weigh(float greatest);
  void keep_top_k();
  void keep_top_p();
  void keep_min_p();
  void keep_up_to(Place last);
  // Calls visit(i) for all of each block that is open(block).
  template <class Open, class Visit>
  void each(Open&& open, Visit&& visit);
  // Keeps i where test(i) in the blocks that are open(block), and nothing of the others.
  template <class Open, class Test>
  void keep(Open&& open, Test&& test);
  uint32_t token_at(size_t i) const { return listed_ ? tokens_[i] : uint32_t(i); }

  Sampling sampling_;
  Generator generator_;
  std::unordered_map<uint32_t, uint32_t> seen_;  // token -> times in the answer; 0: in the prompt alone
  // What is still possible, in rising order of tokens: the first kept_ of each, of weight total_ together.
  size_t kept_ = 0;
  uint64_t total_ = 0;
  bool listed_ = false;  // whether tokens_ is in use: as long as all are possible, it would count from 0
  std::vector<uint32_t> tokens_;
  std::vector<float> values_;
  std::vector<uint64_t> weights_;
  std::vector<float> maxima_, sorted_;  // of the values of each block, so that most blocks need no look
  std::vector<uint64_t> sums_;          // of the weights of each block
  std::vector<Place> places_;
};

}  // namespace paretobit
