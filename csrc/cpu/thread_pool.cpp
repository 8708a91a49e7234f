// SPDX-License-Identifier: Apache-2.0
// The thread pool: see thread_pool.h.
#include "cpu/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <thread>
#include <vector>

#include "cpu/isa.h"
#if defined(__linux__)
#include <sched.h>
#endif

namespace pyspec {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kSpin = std::chrono::microseconds(15);
constexpr auto kStall = std::chrono::microseconds(200);  // a straggler later than this was descheduled
// Then work alone for twice as long as it was waited for: a short interruption is over by then. If the next
// stall comes within kSoon of that, somebody stays on the core: twice as long as the last time, up to
// kMaxSolo.
constexpr auto kSoon = std::chrono::milliseconds(10);
constexpr auto kMaxSolo = std::chrono::milliseconds(100);

inline void cpu_pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins, then sleeps, until *word differs from `old`.
void wait_change(const std::atomic<uint32_t>& word, uint32_t old) {
  const auto limit = Clock::now() + kSpin;
  for (int i = 0; word.load(std::memory_order_acquire) == old; ++i) {
    cpu_pause();
    if (i % 32 == 31 && Clock::now() > limit) word.wait(old, std::memory_order_acquire);
  }
}

class Pool {
 public:
  explicit Pool(int threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { work(); });
  }
  ~Pool() {
    stop_ = true;
    generation_.fetch_add(1);
    generation_.notify_all();
    for (auto& worker : workers_) worker.join();
  }

  void run(int64_t items, void (*fn)(void*, int64_t), void* arg) {
    fn_ = fn;
    arg_ = arg;
    items_ = items;
    const auto begin = Clock::now();
    if (workers_.empty() || begin < solo_until_) {
      for (int64_t i = 0; i < items; ++i) fn(arg, i);
      return;
    }
    const uint32_t generation = generation_.load(std::memory_order_relaxed) + 1;
    pending_.store(uint32_t(items), std::memory_order_relaxed);
    ticket_.store(uint64_t(generation) << 32 | uint32_t(items), std::memory_order_release);
    generation_.store(generation, std::memory_order_seq_cst);
    generation_.notify_all();
    int64_t claimed = 0;
    while (claim(generation)) ++claimed;
    const auto drained = Clock::now();
    for (uint32_t left; (left = pending_.load(std::memory_order_acquire)) != 0;) wait_change(pending_, left);
    watch_stall(begin, drained, claimed);
  }

 private:
  // One CAS on (generation, items left) claims an item, so a late thread never takes an item of a newer call.
  bool claim(uint32_t generation) {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    do {
      if (uint32_t(ticket >> 32) != generation || uint32_t(ticket) == 0) return false;
    } while (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel));
    fn_(arg_, items_ - int64_t(uint32_t(ticket)));
    if (pending_.fetch_sub(1, std::memory_order_acq_rel) == 1) pending_.notify_one();
    return true;
  }

  void work() {
    const FlushDenormals flush;
    uint32_t seen = 0;
    for (;;) {
      wait_change(generation_, seen);
      seen = generation_.load(std::memory_order_acquire);
      if (stop_) return;
      while (claim(seen)) {
      }
    }
  }

  void watch_stall(Clock::time_point begin, Clock::time_point drained, int64_t claimed) {
    const auto end = Clock::now();
    const auto item = (drained - begin) / std::max<int64_t>(1, claimed);
    if (end - drained <= std::max<Clock::duration>(kStall, 3 * item)) return;
    const Clock::duration alone = 2 * (end - drained);
    solo_for_ = std::min<Clock::duration>(
        drained - solo_until_ < kSoon ? std::max(alone, 2 * solo_for_) : alone, kMaxSolo);
    solo_until_ = end + solo_for_;
  }

  alignas(64) std::atomic<uint64_t> ticket_{0};
  alignas(64) std::atomic<uint32_t> pending_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
  void (*fn_)(void*, int64_t) = nullptr;
  void* arg_ = nullptr;
  int64_t items_ = 0;
  std::atomic<bool> stop_{false};
  Clock::time_point solo_until_{};
  Clock::duration solo_for_{};
  std::vector<std::thread> workers_;
};

int default_threads() {
  if (const char* value = std::getenv("PYSPEC_NUM_THREADS"); value && std::atoi(value) > 0)
    return std::atoi(value);
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
#endif
  return std::max(1, int(std::thread::hardware_concurrency()));
}

std::mutex pool_mutex;  // held while a call runs
std::atomic<int> threads_wanted{0};
std::unique_ptr<Pool>& pool_slot() {
  static auto& slot =
      *new std::unique_ptr<Pool>();  // never destroyed: workers may outlive static destruction
  return slot;
}

}  // namespace

int num_threads() {
  int threads = threads_wanted.load();
  if (threads == 0) threads_wanted.store(threads = default_threads());
  return threads;
}

void set_num_threads(int threads) {
  const std::lock_guard<std::mutex> lock(pool_mutex);
  threads_wanted.store(std::max(1, threads));
  pool_slot().reset();
}

void run_items(int64_t items, void (*fn)(void*, int64_t), void* arg) {
  std::unique_lock<std::mutex> lock(pool_mutex, std::defer_lock);
  thread_local bool inside = false;
  if (items > 1 && items < int64_t(1) << 31 && !inside && num_threads() > 1 && lock.try_lock()) {
    if (!pool_slot()) pool_slot() = std::make_unique<Pool>(num_threads());
    inside = true;
    pool_slot()->run(items, fn, arg);
    inside = false;
    return;
  }
  for (int64_t i = 0; i < items; ++i) fn(arg, i);
}

void* thread_scratch(size_t bytes, int index) {
  struct Buffer {
    void* data = nullptr;
    size_t size = 0;
    ~Buffer() { ::operator delete(data, std::align_val_t(64)); }
  };
  thread_local Buffer buffers[2];
  Buffer& buffer = buffers[index];
  if (buffer.size < bytes) {
    ::operator delete(buffer.data, std::align_val_t(64));
    buffer.data = nullptr;
    buffer.size = 0;
    buffer.data = ::operator new(bytes, std::align_val_t(64));
    buffer.size = bytes;
  }
  return buffer.data;
}

}  // namespace pyspec
