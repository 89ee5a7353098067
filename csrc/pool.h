// A fixed team of threads that runs one function together, with barriers in it. Waiting spins first, since
// the others are usually a microsecond away, then offers its core to whoever needs it, then sleeps: an idle
// team costs nothing, and a team larger than the machine is slow but gets there.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace paretobit {

class Pool {
 public:
  // The caller's thread counts: one thread starts no other. Fewer where the system gives no more.
  explicit Pool(size_t threads) : state_(new State) {
    state_->workers.reserve(threads);
    std::lock_guard<std::mutex> hold(state_->mutex);  // workers wait for it: then `size` is known
    try {
      for (size_t i = 1; i < threads; ++i) state_->workers.emplace_back(&State::work, state_.get(), i);
    } catch (const std::system_error&) {
    }
    state_->size = state_->workers.size() + 1;
    state_->spins = state_->size > std::thread::hardware_concurrency() ? 0 : kSpins;
  }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  ~Pool() {
    if (process() !=
        state_->owner) {  // a forked child has no workers to join, only traces of them: left alone
      (void)state_.release();
      return;
    }
    state_->call = nullptr;
    state_->barrier();
    for (std::thread& worker : state_->workers) worker.join();
  }

  size_t size() const { return state_->size; }

  // Calls work(thread) once on every thread, the caller being 0; returns when all have. `work` must not
  // throw. One caller at a time. Throws std::runtime_error in a forked child.
  template <class Work>
  void run(Work& work) {
    if (process() != state_->owner)
      throw std::runtime_error("the threads of a session do not survive a fork");
    state_->call = [](void* context, size_t thread) { (*static_cast<Work*>(context))(thread); };
    state_->context = &work;
    state_->barrier();
    work(size_t(0));
    state_->barrier();
  }

  // Inside `run`: waits until every thread is here. What any wrote before, all see after.
  void barrier() { state_->barrier(); }

 private:
  static constexpr int kSpins = 2000, kYields = 100;

  struct State {
    size_t size = 1;
    int spins = 0;
    long owner = process();
    void (*call)(void*, size_t) = nullptr;
    void* context = nullptr;
    std::vector<std::thread> workers;
    std::mutex mutex;
    std::condition_variable changed;
    alignas(64) std::atomic<size_t> arrived{0};
    alignas(64) std::atomic<uint32_t> round{0};
    std::atomic<int> asleep{0};

    void work(size_t thread) {
      { std::lock_guard<std::mutex> hold(mutex); }
      for (;;) {
        barrier();
        if (!call) return;
        call(context, thread);
        barrier();
      }
    }

    void barrier() {
      const uint32_t now = round.load(std::memory_order_relaxed);
      if (arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == size) {
        arrived.store(0, std::memory_order_relaxed);
        // Whoever falls asleep says so before it looks at `round` a last time: one of the two sees the other.
        round.store(now + 1, std::memory_order_seq_cst);
        if (asleep.load(std::memory_order_seq_cst) > 0) {
          {
            std::lock_guard<std::mutex> hold(mutex);
          }
          changed.notify_all();
        }
        return;
      }
      const auto over = [&] { return round.load(std::memory_order_acquire) != now; };
      for (int i = 0; i < spins; ++i) {
        if (over()) return;
        relax();
      }
      for (int i = 0; i < kYields; ++i) {
        if (over()) return;
        std::this_thread::yield();
      }
      std::unique_lock<std::mutex> hold(mutex);
      asleep.fetch_add(1, std::memory_order_seq_cst);
      while (round.load(std::memory_order_seq_cst) == now) changed.wait(hold);
      asleep.fetch_sub(1, std::memory_order_relaxed);
    }
  };

  static void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#else
    std::this_thread::yield();
#endif
  }

  static long process() {
#if defined(__unix__) || defined(__APPLE__)
    return long(getpid());
#else
    return 0;
#endif
  }

  std::unique_ptr<State> state_;
};

}  // namespace paretobit
