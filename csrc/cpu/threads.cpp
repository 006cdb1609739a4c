// The threads behind parallel_for: those of the OpenMP runtime that torch brought, where there is one, and else a pool.
//
// An OpenMP thread spins for milliseconds after each of torch's parallel operations, and a thread of ours would share
// its core with it: a small network's step took half as long again. The pool's workers spin for a moment after each
// call, since the next one mostly follows at once, then sleep. They are detached and the pool is never destroyed, so a
// process may end while they wait.
#include "threads.h"

#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

#if defined(SHADE_FAST_X86)
#include <immintrin.h>
#endif

namespace shade_fast::cpu {
namespace {

constexpr auto kSpin = std::chrono::microseconds(50);
constexpr int kMostThreads = 1024;

void pause() {
#if defined(SHADE_FAST_X86)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Whether `done` came true within kSpin.
template <typename Done>
bool spin(const Done& done) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 16; ++i) {
      if (done()) return true;
      pause();
    }
  } while (std::chrono::steady_clock::now() < end);
  return done();
}

class Pool {
 public:
  // False where another thread has the pool.
  bool run(std::int64_t tasks, int threads, void (*run)(const void*, std::int64_t), const void* work) {
    if (taken_.exchange(true, std::memory_order_acquire)) return false;
    const int helpers = (threads < kMostThreads ? threads : kMostThreads) - 1;
    start_workers(helpers);
    run_ = run;
    work_ = work;
    tasks_ = tasks;
    next_.store(0, std::memory_order_relaxed);
    state_.store(static_cast<std::uint32_t>(helpers) * kSeat, std::memory_order_release);
    calls_.fetch_add(1);
    if (sleepers_.load() > 0) {
      { const std::lock_guard<std::mutex> lock(mutex_); }
      wake_.notify_all();
    }
    drain();
    state_.fetch_or(kClosed, std::memory_order_acq_rel);
    await_helpers();
    taken_.store(false, std::memory_order_release);
    return true;
  }

 private:
  // The state of a call: whether it is closed to further helpers, how many more it takes, how many are at work.
  static constexpr std::uint32_t kClosed = 1u << 31, kSeat = 1u << 16, kHelper = 1, kHelpers = kSeat - 1;

  void start_workers(int wanted) {
    try {
      for (; workers_ < wanted; ++workers_) std::thread([this] { serve(); }).detach();
    } catch (const std::system_error&) {
      // The machine gives no more threads: those that there are share the tasks.
    } catch (const std::bad_alloc&) {
    }
    may_spin_.store(workers_ < static_cast<int>(std::thread::hardware_concurrency()), std::memory_order_relaxed);
  }

  void serve() {
    for (std::uint64_t seen = 0;;) {
      const auto called = [&] { return calls_.load() != seen; };
      if (!may_spin_.load(std::memory_order_relaxed) || !spin(called)) {
        std::unique_lock<std::mutex> lock(mutex_);
        sleepers_.fetch_add(1);
        wake_.wait(lock, called);
        sleepers_.fetch_sub(1);
      }
      seen = calls_.load();
      if (!join()) continue;
      drain();
      const bool last = (state_.fetch_sub(kHelper) & (kClosed | kHelpers)) == (kClosed | kHelper);
      if (last && caller_sleeps_.load()) {
        { const std::lock_guard<std::mutex> lock(mutex_); }
        helped_.notify_one();
      }
    }
  }

  bool join() {
    std::uint32_t state = state_.load(std::memory_order_acquire);
    while ((state & kClosed) == 0 && state >= kSeat) {
      if (state_.compare_exchange_weak(state, state - kSeat + kHelper, std::memory_order_acq_rel)) return true;
    }
    return false;
  }

  void drain() {
    for (std::int64_t task = next_.fetch_add(1); task < tasks_; task = next_.fetch_add(1)) run_(work_, task);
  }

  void await_helpers() {
    const auto helped = [this] { return (state_.load() & kHelpers) == 0; };
    if (may_spin_.load(std::memory_order_relaxed) ? spin(helped) : helped()) return;
    std::unique_lock<std::mutex> lock(mutex_);
    caller_sleeps_.store(true);
    helped_.wait(lock, helped);
    caller_sleeps_.store(false);
  }

  void (*run_)(const void*, std::int64_t) = nullptr;
  const void* work_ = nullptr;
  std::int64_t tasks_ = 0;
  int workers_ = 0;
  std::atomic<bool> taken_{false}, may_spin_{true}, caller_sleeps_{false};
  std::atomic<int> sleepers_{0};
  std::mutex mutex_;
  std::condition_variable wake_, helped_;
  alignas(64) std::atomic<std::uint64_t> calls_{0};
  alignas(64) std::atomic<std::uint32_t> state_{kClosed};
  alignas(64) std::atomic<std::int64_t> next_{0};
};

// The entry of an OpenMP runtime: calls run(data) on a team of so many threads, the calling one among them.
using Parallel = void (*)(void (*run)(void*), void* data, unsigned threads, unsigned flags);

Parallel find_parallel() {
#if defined(__SANITIZE_THREAD__)
  return nullptr;  // ThreadSanitizer does not see how it synchronises.
#else
  void* const library = dlopen("libgomp.so.1", RTLD_LAZY | RTLD_NOLOAD);
  return library == nullptr ? nullptr : reinterpret_cast<Parallel>(dlsym(library, "GOMP_parallel"));
#endif
}

class Team {
 public:
  explicit Team(Parallel parallel) : parallel_(parallel) {}

  // False where another thread has the team.
  bool run(std::int64_t tasks, int threads, void (*run)(const void*, std::int64_t), const void* work) {
    if (taken_.exchange(true, std::memory_order_acquire)) return false;
    Call call{run, work, tasks};
    parallel_([](void* data) { static_cast<Call*>(data)->drain(); }, &call, static_cast<unsigned>(threads), 0);
    taken_.store(false, std::memory_order_release);
    return true;
  }

 private:
  struct Call {
    void (*run)(const void*, std::int64_t);
    const void* work;
    std::int64_t tasks;
    std::atomic<std::int64_t> next{0};

    void drain() {
      for (std::int64_t task = next.fetch_add(1); task < tasks; task = next.fetch_add(1)) run(work, task);
    }
  };

  Parallel parallel_;
  std::atomic<bool> taken_{false};
};

alignas(Pool) unsigned char storage[sizeof(Pool)];

// A forked child has none of the workers, and its copy of the pool is as the fork found it.
Pool* renew() { return new (storage) Pool; }

Pool* const pool = [] {
  pthread_atfork(nullptr, nullptr, [] { renew(); });
  return renew();
}();

bool forked = false;

// The OpenMP runtime's team, until a fork: it does not know that its threads are gone in the child.
Team* team() {
  static Team* only = [] {
    const Parallel parallel = find_parallel();
    if (parallel == nullptr) return static_cast<Team*>(nullptr);
    pthread_atfork(nullptr, nullptr, [] { forked = true; });
    return new Team(parallel);
  }();
  return forked ? nullptr : only;
}

}  // namespace

void run_on_pool(std::int64_t tasks, int threads, void (*run)(const void* work, std::int64_t task), const void* work) {
  Team* const borrowed = team();
  const bool done = borrowed != nullptr ? borrowed->run(tasks, threads, run, work)
                                        : pool->run(tasks, threads, run, work);
  if (done) return;
  for (std::int64_t task = 0; task < tasks; ++task) run(work, task);
}

}  // namespace shade_fast::cpu
