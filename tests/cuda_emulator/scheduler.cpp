// SPDX-License-Identifier: Apache-2.0
// Runs a grid: blocks one after another on each OS thread, the threads of a block as fibers. A fiber runs
// until it has to wait; then the next runnable one goes on, in one of four orders.
#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <memory>
#include <mutex>
#include <numeric>
#include <thread>

#include "counters.h"
#include "faults.h"
#include "fiber.h"
#include "runtime.h"
#include "shadow.h"

namespace emulator {

__thread const ThreadView* this_thread = nullptr;
__thread Block* this_block = nullptr;

Settings& settings() {
  static Settings current;
  return current;
}

int planted_bug() { return settings().bug; }

namespace {

constexpr size_t kPage = 4096, kMaxSmem = 256 << 10;

int pick_lane(Block& block, uint32_t lanes) {
  switch (settings().order) {
    case Order::kReverse:
      return 31 - std::countl_zero(lanes);
    case Order::kRandom: {
      int skip = int(block.next_random() % unsigned(std::popcount(lanes)));
      while (skip-- > 0) lanes &= lanes - 1;
      return std::countr_zero(lanes);
    }
    default:
      return std::countr_zero(lanes);
  }
}

// A warp goes on while one of its lanes can, but for the random order: then any lane of any warp.
Fiber* next_fiber(Block& block) {
  const Order order = settings().order;
  if (!block.runnable_warps) return nullptr;
  if (order == Order::kRandom || !(block.runnable_warps >> block.current_warp & 1)) {
    uint32_t warps = block.runnable_warps;
    if (order == Order::kForward) {
      block.current_warp = std::countr_zero(warps);
    } else if (order == Order::kReverse) {
      block.current_warp = 31 - std::countl_zero(warps);
    } else {
      int skip = int(block.next_random() % unsigned(std::popcount(warps)));
      while (skip-- > 0) warps &= warps - 1;
      block.current_warp = std::countr_zero(warps);
    }
  }
  const int lane = pick_lane(block, block.warps[block.current_warp].runnable);
  return &block.fibers[size_t(block.current_warp * kWarp + lane)];
}

void enter(Block& block, Fiber& fiber) {
  fiber.wait = Wait::kNot;
  block.current = &fiber;
  this_thread = &fiber;
}

void leave_fiber(Block& block, void** save) {
  Fiber* const next = next_fiber(block);
  if (next) enter(block, *next);
  emulator_switch(save, next ? next->stack_pointer : block.scheduler_stack_pointer);
}

void fiber_main() {
  Block& block = *this_block;
  (*block.body)();
  Fiber& fiber = *block.current;
  end_of_copies(fiber);
  block.stop(fiber, Wait::kExited, "exit", {});
  block.warps[fiber.warp].live &= ~(1u << fiber.lane);
  --block.live;
  finish_after_exit(block, fiber.warp);
  leave_fiber(block, &fiber.stack_pointer);
  std::abort();  // nobody goes on with a fiber that has exited
}

void prepare(Block& block, dim3 block_dim, dim3 grid, uint32_t index) {
  block.index = index;
  block.live = block.threads;
  block.current_warp = 0;
  block.runnable_warps = 0;
  block.aborted = false;
  block.out_of_time = false;
  for (Barrier& barrier : block.barriers) barrier = {};
  std::memset(block.smem, 0xff, block.smem_bytes);
  for (int w = 0; w < block.num_warps; ++w) {
    const int lanes = std::min(kWarp, block.threads - w * kWarp);
    block.warps[w] = {};
    block.warps[w].live = lanes == kWarp ? kAllLanes : (1u << lanes) - 1;
    block.make_runnable(w, block.warps[w].live);
  }
  const uint3 block_index = {index % grid.x, index / grid.x % grid.y, index / grid.x / grid.y};
  for (int t = 0; t < block.threads; ++t) {
    Fiber& fiber = block.fibers[size_t(t)];
    const unsigned u = unsigned(t);
    fiber.thread_index = {u % block_dim.x, u / block_dim.x % block_dim.y, u / block_dim.x / block_dim.y};
    fiber.block_index = block_index;
    fiber.block_dim = block_dim;
    fiber.grid_dim = grid;
    fiber.shared_memory = block.smem;
    fiber.thread = t;
    fiber.warp = t / kWarp;
    fiber.lane = t % kWarp;
    fiber.wait = Wait::kNot;
    fiber.copies.clear();
    fiber.copy_group = 0;
    fiber.wrote_unfenced = false;
    fiber.fences = 0;
    // Tops of stacks are spread over cache sets, and leave the stack as after a call.
    fiber.stack = block.stacks + size_t(t) * kStack;
    void** top = reinterpret_cast<void**>(fiber.stack + kStack - size_t(t % 31) * 128 - 64);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(fiber_main);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    fiber.stack_pointer = top;
  }
  begin_block(block);
}

void report_deadlock(Block& block) {
  std::string text;
  std::vector<std::pair<Place, const char*>> places;
  const Fiber* first = nullptr;
  for (const Fiber& fiber : block.fibers) {
    if (fiber.thread >= block.threads || fiber.wait == Wait::kExited) continue;
    if (!first) first = &fiber;
    if (std::find(places.begin(), places.end(), std::pair(fiber.place, fiber.at)) != places.end()) continue;
    places.emplace_back(fiber.place, fiber.at);
    text += format("%s%s waits for %s of line %d", text.empty() ? "" : "; ", thread_name(fiber).c_str(),
                   fiber.at, int(fiber.place.at));
  }
  text += format("; %d of %d threads have exited", block.threads - block.live, block.threads);
  report("deadlock", first->place, text);
}

void run_block(Block& block) {
  Fiber* const first = next_fiber(block);
  enter(block, *first);
  emulator_switch(&block.scheduler_stack_pointer, first->stack_pointer);
  if (block.live > 0 && !block.aborted) {
    report_deadlock(block);
    block.aborted = true;
  }
  end_block(block);
  block.current = nullptr;
  this_thread = nullptr;
}

std::unique_ptr<Block> new_block() {
  auto block = std::make_unique<Block>();
  const auto map = [](size_t bytes) {
    return static_cast<unsigned char*>(
        mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  };
  block->fibers.resize(kMaxThreads);
  for (Fiber& fiber : block->fibers) fiber.thread = kMaxThreads;
  block->stacks = map(kStacksBytes);
  for (int t = 0; t < kMaxThreads; ++t) mprotect(block->stacks + size_t(t) * kStack, kPage, PROT_NONE);
  block->arena = map(kMaxSmem + 2 * kPage) + kPage;
  block->arena_bytes = kMaxSmem;
  mprotect(block->arena - kPage, kPage, PROT_NONE);
  mprotect(block->arena + kMaxSmem, kPage, PROT_NONE);
  return block;
}

// Blocks of OS threads, kept from launch to launch: mapping a thousand stacks takes longer than a small
// kernel.
struct Pool {
  std::mutex mutex;
  std::vector<std::unique_ptr<Block>> free;
  std::unique_ptr<Block> take() {
    const std::lock_guard lock(mutex);
    if (free.empty()) return new_block();
    auto block = std::move(free.back());
    free.pop_back();
    return block;
  }
  void give(std::unique_ptr<Block> block) {
    const std::lock_guard lock(mutex);
    free.push_back(std::move(block));
  }
};

std::vector<uint32_t> block_order(uint32_t blocks) {
  std::vector<uint32_t> order(blocks);
  std::iota(order.begin(), order.end(), 0u);
  if (settings().order == Order::kReverse) std::reverse(order.begin(), order.end());
  if (settings().order == Order::kRandom || settings().order == Order::kRandomWarps) {
    Block random;
    random.random = settings().seed * 0x9e3779b97f4a7c15u | 1;
    for (uint32_t i = blocks; i > 1; --i) std::swap(order[i - 1], order[random.next_random() % i]);
  }
  return order;
}

bool allowed(const char* kernel, dim3 grid, dim3 block, size_t smem_bytes) {
  const uint64_t threads = uint64_t(block.x) * block.y * block.z;
  std::string text;
  if (threads == 0 || threads > kMaxThreads || block.z > 64) {
    text =
        format("a block must have 1 .. %d threads, got %u x %u x %u", kMaxThreads, block.x, block.y, block.z);
  } else if (grid.x == 0 || grid.x > 0x7fffffffu || grid.y == 0 || grid.y > 65535 || grid.z == 0 ||
             grid.z > 65535) {
    text =
        format("a grid must be in 1 .. 2147483647 x 65535 x 65535, got %u x %u x %u", grid.x, grid.y, grid.z);
  } else if (smem_bytes > size_t(settings().smem_limit)) {
    text = format("a block may have %d bytes of shared memory, got %zu", settings().smem_limit, smem_bytes);
  }
  if (!text.empty()) report("launch", {}, std::string(kernel) + ": " + text);
  return text.empty();
}

}  // namespace

void yield(Block& block) { leave_fiber(block, &block.current->stack_pointer); }

void abort_block() {
  this_block->aborted = true;
  emulator_resume(this_block->scheduler_stack_pointer);
}

uint32_t active_lanes() {
  const Block& block = *this_block;
  return block.warps[block.current->warp].live;
}

void trap(Where where) {
  report("trap", Place::line(where), thread_name(*this_block->current) + " executes __trap()");
  abort_block();
}

void launch(const char* kernel, const void* function, dim3 grid, dim3 block_dim, size_t smem_bytes,
            const std::function<void()>& body) {
  if (!allowed(kernel, grid, block_dim, smem_bytes)) return;
  if (settings().recording) return record_launch(function, grid, block_dim, smem_bytes);
  const uint32_t blocks = grid.x * grid.y * grid.z;
  const std::vector<uint32_t> order = block_order(blocks);
  static Pool pool;
  std::atomic<uint32_t> next{0};
  std::atomic<bool> stop{false};
  begin_launch(kernel);
  const CodeRange kernel_code =
      code_around(__builtin_return_address(0));  // the caller is a template of ptx_emulated.h
  const auto work = [&](uint64_t worker) {
    std::unique_ptr<Block> block = pool.take();
    const FaultHandler handler(kernel_code);
    this_block = block.get();
    block->threads = int(block_dim.x * block_dim.y * block_dim.z);
    block->num_warps = (block->threads + kWarp - 1) / kWarp;
    block->body = &body;
    block->kernel = kernel;
    block->random = (settings().seed * 77 + worker) * 0x9e3779b97f4a7c15u | 1;
    block->smem_bytes = smem_bytes;
    block->smem = block->arena + block->arena_bytes - (smem_bytes + 127) / 128 * 128;
    for (uint32_t i; !stop && (i = next++) < blocks;) {
      prepare(*block, block_dim, grid, order[i]);
      run_block(*block);
      if (block->aborted) stop = true;
    }
    this_block = nullptr;
    pool.give(std::move(block));
  };
  // The checker has one shadow of global memory, the counters one table, and no locks: blocks run one by one.
  const uint32_t workers =
      settings().checked || settings().counting ? 1 : std::min(uint32_t(settings().os_threads), blocks);
  std::vector<std::thread> others;
  for (uint32_t worker = 1; worker < workers; ++worker) others.emplace_back(work, worker);
  work(0);
  for (std::thread& other : others) other.join();
}

}  // namespace emulator
