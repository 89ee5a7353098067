// A fixed team of threads. The caller's thread leads: it publishes a job in parts, works on it like all others, and goes
// on when every part is done. Parts are taken one by one, so a thread that the system has put aside, or that is slower
// than the rest, delays nobody but by the part it holds. Waiting spins first, since a job is usually a microsecond away,
// then offers the core to whoever needs it, then sleeps: an idle team costs nothing.
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
#include <type_traits>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace paretobit {

class Pool {
 public:
  // The caller's thread counts: a team of one starts no other. Fewer where the system gives no more.
  explicit Pool(size_t threads) : state_(new State) {
    state_->spins = threads > std::thread::hardware_concurrency() ? 0 : kSpins;
    state_->workers.reserve(threads);
    try {
      for (size_t i = 1; i < threads; ++i) state_->workers.emplace_back(&State::work, state_.get(), i);
    } catch (const std::system_error&) {
    }
  }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  ~Pool() {
    if (process() != state_->owner) {  // a forked child has no workers to join, only traces of them
      (void)state_.release();
      return;
    }
    state_->stop.store(true, std::memory_order_relaxed);
    state_->publish(0);
    for (std::thread& worker : state_->workers) worker.join();
  }

  size_t size() const { return state_->workers.size() + 1; }

  // Throws std::runtime_error in a forked child, which has none of the threads.
  void check_process() const {
    if (process() != state_->owner) throw std::runtime_error("the threads of a session do not survive a fork");
  }

  // Calls work(part, thread) for every part below `parts` and returns when all have; threads are numbered from 0, the
  // caller's. `work` must not throw, and must not call this. One caller at a time.
  template <class Work>
  void run(size_t parts, Work&& work) {
    if (parts <= 1 || state_->workers.empty()) {
      for (size_t part = 0; part < parts; ++part) work(part, size_t(0));
      return;
    }
    using Plain = std::remove_reference_t<Work>;
    state_->call = [](void* context, size_t part, size_t thread) { (*static_cast<Plain*>(context))(part, thread); };
    state_->context = const_cast<void*>(static_cast<const void*>(&work));
    state_->parts = parts;
    state_->done.store(0, std::memory_order_relaxed);
    state_->publish(parts);
    state_->take(0);
    state_->wait(state_->finished, state_->leader_sleeps, state_->spins,
                 [&] { return state_->done.load(std::memory_order_seq_cst) == parts; });
  }

  // Calls work(thread) once on every thread, all at the same time. The rules of `run` hold.
  template <class Work>
  void run_each(Work&& work) {
    std::atomic<size_t> here{0};
    run(size(), [&](size_t, size_t thread) {  // nobody takes a second part before all are taken
      here.fetch_add(1);
      while (here.load() < size()) std::this_thread::yield();
      work(thread);
    });
  }

 private:
  static constexpr int kSpins = 2000, kYields = 100;

  struct State {
    int spins = 0;
    long owner = process();
    std::vector<std::thread> workers;
    std::mutex mutex;
    std::condition_variable published, finished;

    // The job; nobody reads it without holding a part of it.
    void (*call)(void*, size_t, size_t) = nullptr;
    void* context = nullptr;
    size_t parts = 0;

    alignas(64) std::atomic<uint64_t> ticket{0};  // number of the job, then 32 bits of parts not yet taken
    std::atomic<bool> stop{false}, worker_sleeps{false};
    alignas(64) std::atomic<size_t> done{0};
    std::atomic<bool> leader_sleeps{false};

    void publish(size_t count) {
      const uint64_t job = (ticket.load(std::memory_order_relaxed) >> 32) + 1;
      ticket.store(job << 32 | count, std::memory_order_seq_cst);
      wake(published, worker_sleeps);
    }

    void work(size_t thread) {
      for (;;) {
        const uint64_t seen = take(thread);
        if (stop.load(std::memory_order_relaxed)) return;
        wait(published, worker_sleeps, spins, [&] { return ticket.load(std::memory_order_seq_cst) != seen; });
      }
    }

    // Works on parts while there are any; returns the ticket that says there are none.
    uint64_t take(size_t thread) {
      uint64_t now = ticket.load(std::memory_order_acquire);
      while (uint32_t left = uint32_t(now)) {
        if (!ticket.compare_exchange_weak(now, now - 1, std::memory_order_acq_rel, std::memory_order_acquire))
          continue;
        const size_t all = parts;
        call(context, all - left, thread);
        if (done.fetch_add(1, std::memory_order_seq_cst) + 1 == all) wake(finished, leader_sleeps);
        now = ticket.load(std::memory_order_acquire);
      }
      return now;
    }

    // Whoever falls asleep says so and then looks a last time; whoever has news tells them and then looks for sleepers.
    // So one of the two sees the other.
    void wake(std::condition_variable& changed, std::atomic<bool>& sleeps) {
      if (!sleeps.load(std::memory_order_seq_cst)) return;
      {
        std::lock_guard<std::mutex> hold(mutex);
        sleeps.store(false, std::memory_order_relaxed);
      }
      changed.notify_all();
    }

    template <class Over>
    void wait(std::condition_variable& changed, std::atomic<bool>& sleeps, int tries, Over over) {
      for (int i = 0; i < tries; ++i) {
        if (over()) return;
        relax();
      }
      for (int i = 0; i < kYields; ++i) {
        if (over()) return;
        std::this_thread::yield();
      }
      std::unique_lock<std::mutex> hold(mutex);
      for (;;) {
        sleeps.store(true, std::memory_order_seq_cst);
        if (over()) return;
        changed.wait(hold);
      }
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
