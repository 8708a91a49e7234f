// SPDX-License-Identifier: Apache-2.0
// Happens-before; see shadow.h. A warp's clock counts the barriers it has passed; `known` is how far it knows
// the other warps of its block.
#include "block_order.h"

#include <algorithm>
#include <map>
#include <unordered_map>

#include "shadow.h"

namespace emulator {

namespace {

// What a block has made visible to others: per warp, accesses before this clock; and, of threads that have
// fenced, their own up to the fence.
struct Release {
  struct Point {
    uint32_t clock;
    uint16_t fences;
    auto operator<=>(const Point&) const = default;
  };
  uint32_t before[kMaxWarps] = {};
  std::map<uint16_t, Point> threads;

  bool operator==(const Release&) const = default;
  bool covers(const Stamp& stamp) const {
    if (stamp.clock < before[stamp.thread % kMaxThreads / kWarp]) return true;
    const auto own = threads.find(stamp.thread);
    return own != threads.end() && Point{stamp.clock, stamp.fences} < own->second;
  }
  void join(const Release& other) {
    for (int w = 0; w < kMaxWarps; ++w) before[w] = std::max(before[w], other.before[w]);
    for (const auto& [thread, point] : other.threads) threads[thread] = std::max(threads[thread], point);
  }
};

struct Acquired {
  const Release release;
  Stamp at;  // the atomic that saw it: other threads of the block need to be behind that
};

struct Fence {  // a thread's last one: what it knew
  bool any;
  uint32_t before[kMaxWarps];
  Release::Point point;
};

uint16_t launch_number = 0;
std::unordered_map<const void*, std::map<uint32_t, Release>> released;  // by atomic variable, then by block
std::map<uint32_t, std::vector<Acquired>> acquired;  // by other block; of the one running now
Fence fences[kMaxThreads];
uint32_t fenced_before[kMaxWarps];  // accesses of a warp before this clock are behind a fence of their own

}  // namespace

uint16_t current_launch() { return launch_number; }

void begin_block_order(const Block& block) {
  acquired.clear();
  for (int t = 0; t < block.threads; ++t) fences[t].any = false;
  std::fill_n(fenced_before, kMaxWarps, 0u);
}

void begin_launch_order() {
  launch_number = uint16_t(launch_number % 0xffff + 1);  // 0 stands for no launch
  released.clear();
}

bool has_acquired() { return !acquired.empty(); }

bool ordered_in_block(const Block& block, const Fiber& fiber, const Stamp& stamp) {
  if (stamp.thread == fiber.thread) return true;
  const int warp = stamp.thread % kMaxThreads / kWarp;
  return stamp.clock < (warp == fiber.warp ? block.warps[warp].clock : block.warps[fiber.warp].known[warp]);
}

bool ordered_between_blocks(const Block& block, const Fiber& fiber, const Stamp& stamp) {
  const auto it = acquired.find(stamp.block);
  return it != acquired.end() && std::any_of(it->second.begin(), it->second.end(), [&](const Acquired& seen) {
           return seen.release.covers(stamp) && ordered_in_block(block, fiber, seen.at);
         });
}

void order_by_barrier(Block& block, const uint32_t (&waiting)[kMaxWarps]) {
  if (!settings().checked) return;
  uint32_t known[kMaxWarps] = {};
  for (int w = 0; w < block.num_warps; ++w) {
    if (!waiting[w]) continue;
    Warp& warp = block.warps[w];
    for (int other = 0; other < block.num_warps; ++other)
      known[other] = std::max(known[other], warp.known[other]);
    known[w] = std::max(known[w], ++warp.clock);
    bool unfenced = false;
    for (int t = w * kWarp; t < std::min((w + 1) * kWarp, block.threads); ++t)
      unfenced |= block.fibers[size_t(t)].wrote_unfenced;
    if (!unfenced) fenced_before[w] = warp.clock;
  }
  for (int w = 0; w < block.num_warps; ++w)
    if (waiting[w]) std::copy_n(known, kMaxWarps, block.warps[w].known);
}

void order_by_warp_barrier(Block& block, int warp) { ++block.warps[warp].clock; }

void memory_fence(bool whole_device) {
  if (!whole_device || !settings().checked) return;
  Block& block = *this_block;
  Fiber& fiber = *block.current;
  const Warp& warp = block.warps[fiber.warp];
  Fence& fence = fences[fiber.thread];
  fence.any = true;
  std::copy_n(warp.known, kMaxWarps, fence.before);
  fence.before[fiber.warp] = warp.clock;
  fence.point = {warp.clock, ++fiber.fences};
  fiber.wrote_unfenced = false;
}

void synchronise_blocks(Block& block, Fiber& fiber, const void* address) {
  const Warp& warp = block.warps[fiber.warp];
  const Stamp me = {block.index, warp.clock, launch_number, uint16_t(fiber.thread), fiber.fences, 0};
  if (const auto it = released.find(address); it != released.end())
    for (const auto& [other, from] : it->second) {
      if (other == block.index) continue;
      std::vector<Acquired>& known = acquired[other];
      const auto same = [&](const Acquired& seen) { return seen.release == from; };
      if (std::none_of(known.begin(), known.end(), same)) known.push_back({from, me});
    }
  Release release;
  bool releases = false;
  for (int w = 0; w < block.num_warps; ++w) {
    const uint32_t known = w == fiber.warp ? warp.clock : warp.known[w];
    release.before[w] = std::min(known, fenced_before[w]);
    if (fences[fiber.thread].any)
      release.before[w] = std::max(release.before[w], fences[fiber.thread].before[w]);
    releases |= release.before[w] > 0;
  }
  if (fences[fiber.thread].any) release.threads[uint16_t(fiber.thread)] = fences[fiber.thread].point;
  if (!releases && !fences[fiber.thread].any) return;
  auto& here = released[address];
  here[block.index].join(release);
  for (const auto& [other, all_seen] : acquired)
    for (const Acquired& seen : all_seen) here[other].join(seen.release);
}

}  // namespace emulator
