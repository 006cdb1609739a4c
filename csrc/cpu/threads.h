// Threads for one call. torch brings an OpenMP runtime of its own, and a second one would fight it for the cores.
#pragma once

#include <atomic>
#include <cstdint>
#include <system_error>
#include <thread>
#include <vector>

namespace shade_fast::cpu {

// Calls work(task) once for every task in [0, tasks), in any order, on at most `threads` threads, each of which gets
// tasks_per_thread tasks or more. May throw std::bad_alloc, before any task has begun.
template <typename Work>
void parallel_for(std::int64_t tasks, std::int64_t tasks_per_thread, int threads, const Work& work) {
  std::int64_t workers = tasks / tasks_per_thread;
  if (workers > threads) workers = threads;
  if (workers <= 1) {
    for (std::int64_t task = 0; task < tasks; ++task) work(task);
    return;
  }

  std::atomic<std::int64_t> next{0};
  const auto drain = [&] {
    for (std::int64_t task = next.fetch_add(1); task < tasks; task = next.fetch_add(1)) work(task);
  };
  std::vector<std::thread> spawned;
  spawned.reserve(static_cast<std::size_t>(workers - 1));
  try {
    for (std::int64_t i = 1; i < workers; ++i) spawned.emplace_back(drain);
  } catch (const std::system_error&) {
    // The machine gives no more threads: those that there are, this one included, share the tasks.
  }
  drain();
  for (std::thread& thread : spawned) thread.join();
}

}  // namespace shade_fast::cpu
