// Whether a session gives the same bits on every ISA, with any number of threads, and however a sequence is cut into
// steps; and that sessions can be used from several threads. Exits 1 with a message if not. The last line is a digest of
// all logits: two machines agree when they print the same.
#include <cinttypes>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "decoder_models.h"
#include "session.h"

namespace paretobit::test {
namespace {

constexpr size_t kTokens = 150;  // three cache blocks, more than two steps
constexpr size_t kContext = 200;

[[noreturn]] void fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(1);
}

void require(bool holds, const std::string& what) {
  if (!holds) fail(what);
}

std::vector<int32_t> make_tokens(const Decoder& d, size_t seed) {
  Random random(d.name + std::to_string(seed));
  std::vector<int32_t> tokens(kTokens);
  for (int32_t& token : tokens) token = int32_t(random.below(uint32_t(d.model->config().vocab)));
  return tokens;
}

// Logits (tokens, vocab) of a sequence, in steps of `step` tokens.
std::vector<float> logits_of(Session& session, size_t vocab, const std::vector<int32_t>& tokens, size_t step) {
  const size_t slot = session.open();
  std::vector<float> logits(tokens.size() * vocab);
  for (size_t at = 0; at < tokens.size(); at += step) {
    const size_t count = std::min(step, tokens.size() - at);
    session.step({{slot, {tokens.data() + at, count}, 0}}, logits.data() + at * vocab, count * vocab);
  }
  session.close(slot);
  return logits;
}

// Two sequences side by side, one of them a few tokens ahead, the other forgetting some and going on.
std::vector<float> logits_beside(Session& session, size_t vocab, const std::vector<int32_t>& tokens,
                                 const std::vector<int32_t>& others) {
  const size_t slot = session.open(), other = session.open();
  std::vector<float> logits(tokens.size() * vocab), both(40 * vocab);
  for (size_t at = 0; at < tokens.size(); at += 10) {
    session.step({{slot, {tokens.data() + at, 10}, 0}, {other, {others.data() + at, 7}, 0}}, both.data(), 17 * vocab);
    std::copy_n(both.data(), 10 * vocab, logits.data() + at * vocab);
    if (session.length(other) > 60) session.truncate(other, 31);
  }
  session.close(slot), session.close(other);
  return logits;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && !std::memcmp(a.data(), b.data(), 4 * a.size());
}

// Two sessions of one model, and two threads in one of them.
void use_together(const Decoder& d, const Kernels& k, const std::vector<float>& expected) {
  const size_t vocab = d.model->config().vocab;
  const std::vector<int32_t> tokens = make_tokens(d, 0);
  Session one(*d.model, k, 2, true, kContext), two(*d.model, k, 3, true, kContext);
  std::vector<float> found[3];
  std::thread a([&] { found[0] = logits_of(one, vocab, tokens, 64); });
  std::thread b([&] { found[1] = logits_of(one, vocab, tokens, 9); });
  std::thread c([&] { found[2] = logits_of(two, vocab, tokens, 30); });
  a.join(), b.join(), c.join();
  for (const auto& logits : found) require(same(logits, expected), d.name + ": depends on other threads");
}

CacheScheme small_cache(const Config& config, bool int8) {
  CacheScheme scheme;
  scheme.bits = int8 ? 4 : 3, scheme.by_channel = !int8, scheme.window = 0;
  std::vector<int8_t> signs(config.head_dim, 1);
  for (size_t i = 0; i < signs.size(); i += 3) signs[i] = -1;
  scheme.rotation.emplace(signs.size(), 1, Span<int8_t>{signs.data(), signs.size()}, Span<int8_t>{});
  return scheme;
}

Digest run(const Decoder& d, bool int8, bool small) {
  const size_t vocab = d.model->config().vocab;
  const std::vector<int32_t> tokens = make_tokens(d, 0), others = make_tokens(d, 1);
  std::vector<float> expected;
  for (const std::string& isa : available()) {
    const Kernels& k = kernels(isa);
    const std::string where = d.name + ", " + isa + (int8 ? ", int8" : "") + (small ? ", small cache" : "");
    for (const size_t threads : {size_t(1), size_t(3)}) {
      const CacheScheme cache = small ? small_cache(d.model->config(), int8) : CacheScheme();
      Session session(*d.model, k, threads, int8, kContext, cache);
      for (const size_t step : {size_t(64), size_t(1), size_t(13)}) {
        const std::vector<float> logits = logits_of(session, vocab, tokens, step);
        if (expected.empty()) expected = logits;
        require(same(logits, expected), where + ": depends on the ISA, the threads or the steps");
      }
      require(same(logits_beside(session, vocab, tokens, others), expected), where + ": depends on what is beside it");
      require(session.kv_bytes() == 0, where + ": closed sequences keep memory");
    }
    if (int8 && !small) use_together(d, k, expected);
  }
  for (const float x : expected) require(std::isfinite(x), d.name + ": logits are not finite");
  Digest digest;
  digest.add(expected);
  return digest;
}

}  // namespace
}  // namespace paretobit::test

int main() {
  using namespace paretobit::test;
  Digest all;
  for (const Decoder& decoder : make_decoders())
    for (const bool small : {false, true})
      for (const bool int8 : {true, false}) {
        const uint64_t digest = run(decoder, int8, small).value();
        std::printf("%016" PRIx64 " %s%s%s\n", digest, decoder.name.c_str(), int8 ? ", int8" : "",
                    small ? ", small cache" : "");
        all.add(&digest, 1);
      }
  std::printf("%016" PRIx64 "\n", all.value());
}
