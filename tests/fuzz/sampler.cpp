// The sampler with any logits: a token that it draws has a probability, or it says that the logits are impossible.
#include "sampler.h"

#include <cmath>
#include <stdexcept>

#include "reader.h"

using namespace paretobit;
using namespace paretobit::test;

namespace {

// A number in [least, most], whatever the bytes are.
double within(Reader& in, double least, double most) {
  const double x = in.number<float>();
  return x >= least && x <= most ? x : least + (most - least) * in.byte() / 255.0;
}

Sampling read_sampling(Reader& in) {
  Sampling s;
  s.temperature = in.coin() ? within(in, 0, 1e30) : 0;
  s.top_k = in.byte();
  s.top_p = in.coin() ? within(in, 1e-30, 1) : 1;
  s.min_p = in.coin() ? within(in, 0, 1) : 0;
  s.repetition = in.coin() ? within(in, 1e-30, 1e3) : 1;
  s.presence = within(in, -1e3, 1e3);
  s.frequency = within(in, -1e3, 1e3);
  for (size_t i = in.below(4); i; --i) {
    const auto token = in.number<uint32_t>();
    const double bias = in.number<float>();
    if (bias < HUGE_VAL) s.bias.push_back({in.coin() ? token : token % 64, bias});
  }
  s.seed = in.byte();
  return s;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Reader in(data, size);
  Sampler sampler(read_sampling(in));
  Exact<int64_t> prompt(in.below(5));
  for (size_t i = 0; i < prompt.size(); ++i) prompt[i] = in.number<uint32_t>() & 0x7FFFFFFF;
  sampler.start(prompt.data(), prompt.size());
  const size_t count = in.coin() ? in.below(70) + 1 : in.number<uint16_t>() % 3000 + size_t(1);
  Exact<float> logits(count);
  Exact<double> chances(count);
  for (int step = 0; step < 3; ++step) {
    logits.fill(in);
    try {
      sampler.distribution(logits.data(), count, chances.data());
      const size_t token = sampler.sample(logits.data(), count);
      require(token < count && chances[token] > 0, "drew a token that cannot be drawn");
    } catch (const std::invalid_argument&) {
    }
  }
  return 0;
}
