#include "probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <stdexcept>
#include <system_error>
#include <thread>

namespace paretobit {
namespace {

// All threads leave wait() together. It spins, so that leaving takes no system call; then yields, so that more
// threads than processors still get on.
class Barrier {
 public:
  explicit Barrier(int threads) : threads_(threads) {}

  void wait() {
    const unsigned turn = turn_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      return;
    }
    constexpr int kSpins = 1 << 14;
    for (int spin = 0; turn_.load(std::memory_order_acquire) == turn; ++spin)
      if (spin >= kSpins) std::this_thread::yield();
  }

 private:
  const int threads_;
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> turn_{0};
};

// Starts `threads` threads, or none: all wait until the last one is there.
class Team {
 public:
  Team(int threads, const std::function<void(int)>& work) {
    try {
      for (int i = 0; i < threads; ++i)
        members_.emplace_back([this, i, &work] {
          State state;
          while ((state = state_.load(std::memory_order_acquire)) == kWaiting) std::this_thread::yield();
          if (state == kStarted) work(i);
        });
    } catch (const std::system_error&) {
      end(kGivenUp);
      throw std::runtime_error("the system gives no more threads");
    }
    end(kStarted);
  }

 private:
  enum State { kWaiting, kStarted, kGivenUp };

  void end(State state) {
    state_.store(state, std::memory_order_release);
    for (std::thread& member : members_) member.join();
  }

  std::atomic<State> state_{kWaiting};
  std::vector<std::thread> members_;
};

constexpr double kShortest = 1e-3;  // seconds: against these, clock and barrier are nothing
constexpr size_t kLeastRuns = 3;

// Seconds of single calls of work(thread) on all threads at once.
std::vector<double> timed(int threads, double limit, const std::function<void(int)>& prepare,
                          const std::function<void(int)>& work) {
  using Clock = std::chrono::steady_clock;
  // From the first thread that starts to the last that ends: any of them may be held up anywhere.
  std::vector<Clock::time_point> starts(static_cast<size_t>(threads)), ends(static_cast<size_t>(threads));
  std::vector<double> seconds;
  int sweeps = 1;
  double spent = 0;
  bool going = true;
  const auto count = [&] {
    const auto first = *std::min_element(starts.begin(), starts.end());
    const auto last = *std::max_element(ends.begin(), ends.end());
    const double passed = std::chrono::duration<double>(last - first).count();
    spent += passed;
    if (passed < kShortest && spent < limit)
      sweeps *= 2, seconds.clear();
    else
      seconds.push_back(passed / sweeps);
    going = seconds.size() < kLeastRuns || spent < limit;
  };
  Barrier barrier(threads);
  Team(threads, [&](int thread) {
    prepare(thread);
    work(thread);
    do {
      barrier.wait();
      starts[static_cast<size_t>(thread)] = Clock::now();
      for (int sweep = 0; sweep < sweeps; ++sweep) work(thread);
      ends[static_cast<size_t>(thread)] = Clock::now();
      barrier.wait();
      if (thread == 0) count();
      barrier.wait();
    } while (going);
  });
  return seconds;
}

constexpr size_t kPage = 4096;

struct FreePages {
  void operator()(uint8_t* pages) const { ::operator delete[](pages, std::align_val_t(kPage)); }
};

}  // namespace

std::vector<double> read_seconds(const Kernels& kernels, size_t bytes, int threads, double limit) {
  const size_t each = bytes / static_cast<size_t>(threads) / kPage * kPage;
  const std::unique_ptr<uint8_t[], FreePages> memory(
      new (std::align_val_t(kPage)) uint8_t[each * static_cast<size_t>(threads)]);
  const auto part = [&](int thread) { return memory.get() + static_cast<size_t>(thread) * each; };
  std::vector<uint64_t> sums(static_cast<size_t>(threads));
  // Whoever reads a page has touched it first, so that it lies near.
  const auto fill = [&](int thread) { std::memset(part(thread), thread + 1, each); };
  const auto read = [&](int thread) {
    sums[static_cast<size_t>(thread)] += kernels.read_words(part(thread), each);
  };
  std::vector<double> seconds = timed(threads, limit, fill, read);
  volatile uint64_t sink = 0;
  for (uint64_t sum : sums) sink = sink ^ sum;
  return seconds;
}

std::vector<double> multiply_seconds(const Kernels& kernels, const Matrix& matrix, const Inputs& inputs, float* out,
                                     int threads, double limit) {
  const size_t tiles = matrix.layout.tiles, team = static_cast<size_t>(threads);
  const auto multiply = [&](int thread) {
    const size_t first = tiles * static_cast<size_t>(thread) / team;
    const size_t last = tiles * (static_cast<size_t>(thread) + 1) / team;
    if (first < last) kernels.multiply(matrix, inputs, first, last, out, matrix.layout.rows);
  };
  return timed(threads, limit, [](int) {}, multiply);
}

}  // namespace paretobit
