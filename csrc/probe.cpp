#include "probe.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>

#include "pool.h"

namespace paretobit {
namespace {

constexpr double kShortest = 1e-3;  // seconds: against these, clock and barrier are nothing
constexpr size_t kLeastRuns = 3;
constexpr size_t kPage = 4096;

// Seconds of single calls of work(thread) on all threads at once; `prepare` is called once before.
template <class Prepare, class Work>
std::vector<double> timed(size_t threads, double limit, Prepare&& prepare, Work&& work) {
  using Clock = std::chrono::steady_clock;
  Pool pool(threads);
  if (pool.size() < threads) throw std::runtime_error("the system gives no more threads");
  // From the first thread that starts to the last that ends: any of them may be held up anywhere.
  std::vector<Clock::time_point> starts(threads), ends(threads);
  int sweeps = 1;
  auto warm = [&](size_t thread) {
    prepare(thread);
    work(thread);
  };
  auto run = [&](size_t thread) {
    starts[thread] = Clock::now();
    for (int sweep = 0; sweep < sweeps; ++sweep) work(thread);
    ends[thread] = Clock::now();
  };
  pool.run_each(warm);
  std::vector<double> seconds;
  double spent = 0;
  do {
    pool.run_each(run);
    const auto first = *std::min_element(starts.begin(), starts.end());
    const double passed = std::chrono::duration<double>(*std::max_element(ends.begin(), ends.end()) - first).count();
    spent += passed;
    if (passed < kShortest && spent < limit)
      sweeps *= 2, seconds.clear();
    else
      seconds.push_back(passed / sweeps);
  } while (seconds.size() < kLeastRuns || spent < limit);
  return seconds;
}

struct FreePages {
  void operator()(uint8_t* pages) const { ::operator delete[](pages, std::align_val_t(kPage)); }
};

}  // namespace

std::vector<double> read_seconds(const Kernels& kernels, size_t bytes, size_t threads, double limit) {
  const size_t each = bytes / threads / kPage * kPage;
  const std::unique_ptr<uint8_t[], FreePages> memory(new (std::align_val_t(kPage)) uint8_t[each * threads]);
  std::vector<uint64_t> sums(threads);
  // Whoever reads a page has touched it first, so that it lies near.
  const auto fill = [&](size_t thread) { std::memset(memory.get() + thread * each, int(thread) + 1, each); };
  const auto read = [&](size_t thread) { sums[thread] += kernels.read_words(memory.get() + thread * each, each); };
  return timed(threads, limit, fill, read);
}

std::vector<double> product_seconds(const Kernels& kernels, size_t threads, double limit) {
  constexpr size_t kQuads = 64, kRows = kProductSets * 16, kColumns = 4 * kQuads;
  struct Team {
    uint8_t codes[kRows * kColumns];
    int8_t activations[kProductTokens * kColumns];
    int32_t sums[kProductTokens], out[kProductTokens * kRows];
  };
  std::vector<Team> teams(threads);
  const auto fill = [&](size_t thread) {
    Team& own = teams[thread];
    for (size_t i = 0; i < sizeof own.codes; ++i) own.codes[i] = uint8_t(37 * i);
    for (size_t i = 0; i < sizeof own.activations; ++i) own.activations[i] = int8_t(int(91 * i % 255) - 127);
  };
  const auto multiply = [&](size_t thread) {
    Team& own = teams[thread];
    const ProductArgs args{own.codes, own.activations, own.sums, kQuads, own.out};
    for (size_t i = 0; i < kProducts; i += kProductTokens * kRows * kColumns) kernels.products(args);
  };
  return timed(threads, limit, fill, multiply);
}

std::vector<double> multiply_seconds(const Kernels& kernels, const Matrix& matrix, const Inputs& inputs, float* out,
                                     size_t threads, double limit) {
  const size_t tiles = matrix.layout.tiles, rows = matrix.layout.rows;
  const auto nothing = [](size_t) {};
  const auto multiply = [&](size_t thread) {
    const size_t first = tiles * thread / threads, last = tiles * (thread + 1) / threads;
    if (first < last) kernels.multiply(matrix, inputs, first, last, out, rows);
  };
  return timed(threads, limit, nothing, multiply);
}

}  // namespace paretobit
