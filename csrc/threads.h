// Rows split over threads. Rows only: a reduction is never split, so results do not depend on the number of
// threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__wasm__) && !defined(_REENTRANT)
#define PARETOBIT_ONE_THREAD  // WebAssembly without its thread proposal: the library has no std::thread
#endif

namespace paretobit {

// Calls work(first, last) on disjoint row ranges that cover [0, rows). `cost` is the work of a row in bytes
// touched; little work stays on the calling thread. Rethrows the exception of the lowest failing range.
template <class Work>
void parallel_rows(size_t rows, size_t cost, int threads, Work&& work) {
  if (rows == 0) return;
#if defined(PARETOBIT_ONE_THREAD)
  (void)cost, (void)threads;
  work(size_t(0), rows);
#else
  constexpr size_t kWorthAThread = size_t(1) << 18;
  const size_t useful = rows * std::max<size_t>(cost, 1) / kWorthAThread + 1;
  const size_t parts = std::max<size_t>(1, std::min({size_t(threads < 1 ? 1 : threads), useful, rows}));
  std::vector<std::exception_ptr> errors(parts);
  auto run = [&](size_t part) {
    try {
      work(rows / parts * part + std::min(part, rows % parts),
           rows / parts * (part + 1) + std::min(part + 1, rows % parts));
    } catch (...) {
      errors[part] = std::current_exception();
    }
  };
  std::vector<std::thread> team;
  team.reserve(parts);
  size_t started = 1;
  for (; started < parts; ++started) {
    try {
      team.emplace_back(run, started);
    } catch (const std::system_error&) {  // the system gives no more threads: do the rest here
      break;
    }
  }
  run(0);
  for (size_t part = started; part < parts; ++part) run(part);
  for (auto& thread : team) thread.join();
  for (auto& error : errors)
    if (error) std::rethrow_exception(error);
#endif
}

}  // namespace paretobit
