// Threads that stay from call to call.
#pragma once

#include <cstdint>

namespace shade_fast::cpu {

// As parallel_for, with the work behind a pointer; threads >= 2.
void run_on_pool(std::int64_t tasks, int threads, void (*run)(const void* work, std::int64_t task), const void* work);

// Calls work(task) once for every task in [0, tasks), in any order, on at most `threads` threads, each of which gets
// tasks_per_thread tasks or more. Allocates nothing once the threads are there. While another thread's call is under
// way, the tasks run on the calling thread alone.
template <typename Work>
void parallel_for(std::int64_t tasks, std::int64_t tasks_per_thread, int threads, const Work& work) {
  std::int64_t workers = tasks / tasks_per_thread;
  if (workers > threads) workers = threads;
  if (workers <= 1) {
    for (std::int64_t task = 0; task < tasks; ++task) work(task);
    return;
  }
  run_on_pool(
      tasks, static_cast<int>(workers),
      [](const void* erased, std::int64_t task) { (*static_cast<const Work*>(erased))(task); }, &work);
}

}  // namespace shade_fast::cpu
