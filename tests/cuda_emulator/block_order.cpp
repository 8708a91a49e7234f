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

// What a block has made visible to others: per warp, accesses before this clock; and those of one thread.
struct Release {
  uint32_t before[kMaxWarps] = {};
  bool fenced = false;  // the two that follow hold
  uint16_t thread = 0;
  uint32_t thread_clock = 0;  // its accesses at this clock and before

  void join(const Release& other) {
    for (int w = 0; w < kMaxWarps; ++w) before[w] = std::max(before[w], other.before[w]);
    if (other.fenced) {
      fenced = true;
      thread = other.thread;
      thread_clock = other.thread_clock;
    }
  }
};

struct Acquired {
  Release release;
  Stamp at;  // the atomic that saw it: other threads of the block need to be behind that
};

uint32_t launch_number = 0;
std::unordered_map<const void*, std::map<uint32_t, Release>> released;  // by atomic variable, then by block
std::map<uint32_t, Acquired> acquired;                                  // by the block running now
Release fences[kMaxThreads];                                            // of its threads, at their last fence
uint32_t fenced_before[kMaxWarps];  // accesses of a warp before this clock are behind a fence of their own

bool covers(const Release& release, const Stamp& stamp) {
  return (release.fenced && stamp.thread == release.thread && stamp.clock <= release.thread_clock) ||
         stamp.clock < release.before[stamp.thread % kMaxThreads / kWarp];
}

}  // namespace

uint32_t current_launch() { return launch_number; }

void begin_block_order() {
  acquired.clear();
  std::fill_n(fences, kMaxThreads, Release{});
  std::fill_n(fenced_before, kMaxWarps, 0u);
}

void begin_launch_order() {
  ++launch_number;
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
  return it != acquired.end() && covers(it->second.release, stamp) &&
         ordered_in_block(block, fiber, it->second.at);
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
  Release& fence = fences[fiber.thread];
  std::copy_n(warp.known, kMaxWarps, fence.before);
  fence.before[fiber.warp] = warp.clock;
  fence.thread = uint16_t(fiber.thread);
  fence.thread_clock = warp.clock;
  fence.fenced = true;
  fiber.wrote_unfenced = false;
}

void synchronise_blocks(Block& block, Fiber& fiber, const void* address) {
  const Warp& warp = block.warps[fiber.warp];
  Release release = fences[fiber.thread];
  bool releases = release.fenced;
  for (int w = 0; w < block.num_warps; ++w) {
    const uint32_t known = w == fiber.warp ? warp.clock : warp.known[w];
    release.before[w] = std::max(release.before[w], std::min(known, fenced_before[w]));
    releases |= release.before[w] > 0;
  }
  const Stamp me = {launch_number, block.index, warp.clock, uint16_t(fiber.thread), 0};
  if (const auto it = released.find(address); it != released.end())
    for (const auto& [other, from] : it->second) {
      if (other == block.index) continue;
      Acquired& seen = acquired[other];
      seen.release.join(from);
      seen.at = me;
    }
  if (!releases) return;
  auto& here = released[address];
  here[block.index].join(release);
  for (const auto& [other, seen] : acquired) here[other].join(seen.release);
}

}  // namespace emulator
