// SPDX-License-Identifier: Apache-2.0
// The machine: fibers (CUDA threads), warps, blocks, and the settings of a call.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "ptx_emulated.h"
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace emulator {

constexpr int kWarp = 32, kMaxWarps = 32, kMaxThreads = kWarp * kMaxWarps, kBarriers = 16;
constexpr uint32_t kAllLanes = 0xffffffffu;
constexpr size_t kStack = 64 << 10, kStacksBytes = kStack * kMaxThreads;  // of fibers

// Where a kernel does something: a line, or (file null) a program counter that Python looks up.
struct Place {
  const char* file;
  uint64_t at;
  static Place line(Where where) { return {where.file, uint64_t(where.line)}; }
  static Place counter(const void* pc) { return {nullptr, reinterpret_cast<uint64_t>(pc)}; }
  bool operator==(const Place&) const = default;
};

enum class Order { kForward, kReverse, kRandom, kRandomWarps };
enum class Copies { kEarly, kLate, kRandom };

struct Settings {
  Order order = Order::kForward;
  Copies copies = Copies::kEarly;
  uint64_t seed = 1;
  int os_threads = 2;
  int smem_limit = 0;                      // of a block, bytes
  double time_limit = 60;                  // seconds of CPU time that an OS thread may take for a launch
  bool checked = false, counting = false;  // either needs kernels of the checked build
  bool recording = false;                  // launches are noted and not run
  int bug = 0;                             // that is planted, of PYSPEC_PLANTED
};
Settings& settings();

struct Copy {  // a cp.async under way
  unsigned char* to;
  const unsigned char* from;
  int bytes;
  bool valid, landed;
  uint32_t group;
  Place place;
};

enum class Wait : uint8_t { kNot, kBlock, kWarp, kExited };

// What a lane gives to a warp instruction, and what it takes.
struct Exchange {
  Words a, d;
  uint32_t b0, b1;
  uint64_t value;
  int kind, argument, width;
};

struct Fiber : ThreadView {
  void* stack_pointer;
  unsigned char* stack;
  int thread, warp, lane;
  Wait wait;
  Place place;     // where it waits
  const char* at;  // what it waits for
  Exchange exchange;
  std::vector<Copy> copies;
  uint32_t copy_group;
  bool wrote_unfenced;  // to global memory, since its last fence
  uint16_t fences;      // that it has passed
};

struct Block;
using Complete = void (*)(Block& block, int warp, uint32_t lanes);

// Lanes that are meeting for one warp instruction; several where a warp has diverged.
struct Meeting {
  uint32_t mask = 0, arrived = 0;
  const char* what = nullptr;
  Place place{};
  Complete complete = nullptr;
};

struct Warp {
  uint32_t runnable = 0, live = 0;
  Meeting meetings[4];
  // Barriers this warp has passed, __syncwarp among them; what it knows of every other warp's (see shadow.h).
  uint32_t clock = 0;
  uint32_t known[kMaxWarps] = {};
};

struct Barrier {
  int arrived = 0, expected = 0, reduction = 0;
  Place place{};
  uint32_t waiting[kMaxWarps] = {};
};

// The block that an OS thread runs; reused for all of its blocks.
struct Block {
  std::vector<Fiber> fibers;
  Warp warps[kMaxWarps];
  Barrier barriers[kBarriers];
  int reduction_result[kBarriers] = {};
  uint32_t runnable_warps = 0;
  int threads = 0, num_warps = 0, live = 0, current_warp = 0;
  Fiber* current = nullptr;
  void* scheduler_stack_pointer = nullptr;
  const std::function<void()>* body = nullptr;
  const char* kernel = "";
  uint32_t index = 0;  // in the grid
  uint64_t random = 1;
  unsigned char* stacks = nullptr;
  unsigned char* arena = nullptr;  // shared memory ends where this mapping's guard page begins
  unsigned char* smem = nullptr;
  size_t smem_bytes = 0, arena_bytes = 0;
  bool aborted = false;
  volatile bool out_of_time = false;  // set by a signal

  uint64_t next_random() {
    random ^= random << 13;
    random ^= random >> 7;
    return random ^= random << 17;
  }
  void make_runnable(int warp, uint32_t lanes) {
    warps[warp].runnable |= lanes;
    if (lanes) runnable_warps |= 1u << warp;
  }
  void stop(Fiber& fiber, Wait wait, const char* what, Place place) {
    fiber.wait = wait;
    fiber.at = what;
    fiber.place = place;
    Warp& warp = warps[fiber.warp];
    if (!(warp.runnable &= ~(1u << fiber.lane))) runnable_warps &= ~(1u << fiber.warp);
  }
};

extern __thread Block* this_block __attribute__((tls_model("initial-exec")));

// What is wrong with a kernel. One finding a kind and place is kept.
void report(const char* kind, Place place, const std::string& text,
            Place other = {});                   // other: that it collides with
void yield(Block& block);                        // the current fiber has to wait
void finish_after_exit(Block& block, int warp);  // of one of its lanes: others may have waited for it alone
void record_launch(const void* function, dim3 grid, dim3 block, size_t smem_bytes);
void report_time(Place place);    // the launch has had its time
[[noreturn]] void abort_block();  // gives up the block from one of its fibers
std::string thread_name(const Fiber& fiber);
std::string format(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

// Meets the lanes of `mask`; the last to arrive runs complete(block, warp, lanes), then all go on.
void meet(uint32_t mask, const char* what, Where where, Complete complete);

}  // namespace emulator
