// SPDX-License-Identifier: Apache-2.0
// What threads do together: barriers of a block, and the functions in which the lanes of a warp meet.
#include <algorithm>
#include <bit>

#include "counters.h"
#include "runtime.h"
#include "shadow.h"

namespace emulator {

namespace {

void release(Block& block, int id) {
  Barrier& barrier = block.barriers[id];
  block.reduction_result[id] = barrier.reduction;
  order_by_barrier(block, barrier.waiting);
  if (settings().counting) {
    count_barrier();
    for (int w = 0; w < block.num_warps; ++w)
      if (barrier.waiting[w]) flush_warp(block, w);
  }
  for (int w = 0; w < block.num_warps; ++w) block.make_runnable(w, barrier.waiting[w]);
  barrier = {};
}

bool is_complete(const Block& block, const Barrier& barrier) {
  return barrier.arrived > 0 && barrier.arrived >= (barrier.expected ? barrier.expected : block.live);
}

void complete_meeting(Block& block, int warp, Meeting& meeting) {
  const uint32_t lanes = meeting.arrived;
  meeting.arrived = 0;
  if (settings().counting && lanes == block.warps[warp].live) flush_warp(block, warp);
  meeting.complete(block, warp, lanes);
  block.make_runnable(warp, lanes);
}

Exchange& exchange_of(Block& block, int warp, int lane) {
  return block.fibers[size_t(warp * kWarp + lane)].exchange;
}

template <typename Body>
void for_each_lane(uint32_t lanes, Body body) {
  for (; lanes; lanes &= lanes - 1) body(std::countr_zero(lanes));
}

int source_lane(const Exchange& own, int lane) {
  const int first = lane & ~(own.width - 1), last = first + own.width - 1;
  switch (Shuffle(own.kind)) {
    case Shuffle::kIndex:
      return first | (own.argument & (own.width - 1));
    case Shuffle::kXor:
      return (lane ^ own.argument) > last ? lane : lane ^ own.argument;
    case Shuffle::kUp:
      return lane - own.argument < first ? lane : lane - own.argument;
    default:
      return lane + own.argument > last ? lane : lane + own.argument;
  }
}

void complete_shuffle(Block& block, int warp, uint32_t lanes) {
  uint64_t values[kWarp];
  for_each_lane(lanes, [&](int lane) { values[lane] = exchange_of(block, warp, lane).value; });
  for_each_lane(lanes, [&](int lane) {
    Exchange& own = exchange_of(block, warp, lane);
    const int source = source_lane(own, lane) & (kWarp - 1);
    if (lanes >> source & 1) {
      own.value = values[source];
    } else {
      const Fiber& fiber = block.fibers[size_t(warp * kWarp + lane)];
      report("shuffle", fiber.place,
             format("%s reads lane %d, which takes no part (mask %08x)", thread_name(fiber).c_str(), source,
                    lanes));
    }
  });
}

void complete_ballot(Block& block, int warp, uint32_t lanes) {
  uint32_t votes = 0;
  for_each_lane(lanes, [&](int lane) { votes |= uint32_t(exchange_of(block, warp, lane).value) << lane; });
  for_each_lane(lanes, [&](int lane) { exchange_of(block, warp, lane).value = votes; });
}

void complete_match(Block& block, int warp, uint32_t lanes) {
  uint32_t same[kWarp] = {};
  for_each_lane(lanes, [&](int lane) {
    for_each_lane(lanes, [&](int other) {
      if (exchange_of(block, warp, lane).value == exchange_of(block, warp, other).value)
        same[lane] |= 1u << other;
    });
  });
  for_each_lane(lanes, [&](int lane) { exchange_of(block, warp, lane).value = same[lane]; });
}

uint32_t combine(uint32_t a, uint32_t b, WarpReduction kind, bool is_signed) {
  const bool less = is_signed ? int32_t(a) < int32_t(b) : a < b;
  switch (kind) {
    case WarpReduction::kAdd:
      return a + b;
    case WarpReduction::kMin:
      return less ? a : b;
    case WarpReduction::kMax:
      return less ? b : a;
    case WarpReduction::kAnd:
      return a & b;
    case WarpReduction::kOr:
      return a | b;
    default:
      return a ^ b;
  }
}

void complete_reduce(Block& block, int warp, uint32_t lanes) {
  const Exchange& first = exchange_of(block, warp, std::countr_zero(lanes));
  uint32_t total = uint32_t(first.value);
  for_each_lane(lanes & (lanes - 1), [&](int lane) {
    total = combine(total, uint32_t(exchange_of(block, warp, lane).value), WarpReduction(first.kind),
                    first.argument);
  });
  for_each_lane(lanes, [&](int lane) { exchange_of(block, warp, lane).value = total; });
}

void complete_warp_barrier(Block& block, int warp, uint32_t) { order_by_warp_barrier(block, warp); }

}  // namespace

int block_barrier(int id, int threads, Reduction reduction, bool predicate, Where where) {
  Block& block = *this_block;
  Fiber& fiber = *block.current;
  const Place place = Place::line(where);
  if (id < 0 || id >= kBarriers || threads % kWarp != 0 || threads < 0 || threads > block.threads) {
    report("barrier", place,
           format("barrier %d of %d threads: ids are 0 .. 15, threads a multiple of 32 up to the block's %d",
                  id, threads, block.threads));
    abort_block();
  }
  Barrier& barrier = block.barriers[id];
  if (barrier.arrived == 0) {
    barrier.expected = threads;
    barrier.place = place;
    barrier.reduction = reduction == Reduction::kAnd;
  } else if (id == 0 && barrier.place.at != place.at) {
    report("divergence", place,
           format("%s reaches __syncthreads here while others wait in that of line %d",
                  thread_name(fiber).c_str(), int(barrier.place.at)));
  } else if (barrier.expected != threads) {
    report(
        "barrier", place,
        format("barrier %d is awaited by %d threads here and %d elsewhere", id, threads, barrier.expected));
  }
  if (reduction == Reduction::kCount) barrier.reduction += predicate;
  if (reduction == Reduction::kOr) barrier.reduction |= int(predicate);
  if (reduction == Reduction::kAnd) barrier.reduction &= int(predicate);
  ++barrier.arrived;
  barrier.waiting[fiber.warp] |= 1u << fiber.lane;
  if (is_complete(block, barrier)) {
    release(block, id);
  } else {
    block.stop(fiber, Wait::kBlock, id == 0 ? "__syncthreads" : "the named barrier", place);
    yield(block);
  }
  return block.reduction_result[id];
}

void finish_after_exit(Block& block, int warp) {
  for (int id = 0; id < kBarriers; ++id)
    if (is_complete(block, block.barriers[id])) release(block, id);
  for (Meeting& meeting : block.warps[warp].meetings)
    if (meeting.arrived && meeting.arrived == (meeting.mask & block.warps[warp].live))
      complete_meeting(block, warp, meeting);
}

void meet(uint32_t mask, const char* what, Where where, Complete complete) {
  Block& block = *this_block;
  Fiber& fiber = *block.current;
  Warp& warp = block.warps[fiber.warp];
  const Place place = Place::line(where);
  const uint32_t own = 1u << fiber.lane;
  if (!(mask & own)) {
    report(
        "mask", place,
        format("%s calls %s with mask %08x, which lacks its lane", thread_name(fiber).c_str(), what, mask));
    abort_block();
  }
  Meeting* meeting = nullptr;
  for (Meeting& candidate : warp.meetings)
    if (candidate.arrived && candidate.mask == mask && !(candidate.arrived & own)) meeting = &candidate;
  if (meeting && (meeting->what != what || meeting->place.at != place.at)) {
    report("divergence", place,
           format("%s calls %s while lanes of its warp wait in %s of line %d", thread_name(fiber).c_str(),
                  what, meeting->what, int(meeting->place.at)));
    abort_block();
  }
  for (Meeting& candidate : warp.meetings)
    if (!meeting && !candidate.arrived) {
      meeting = &candidate;
      *meeting = {mask, 0, what, place, complete};
    }
  if (!meeting) {
    report("divergence", place, thread_name(fiber) + ": its warp waits in more than four places");
    abort_block();
  }
  meeting->arrived |= own;
  fiber.place = place;
  if (meeting->arrived == (mask & warp.live)) {
    complete_meeting(block, fiber.warp, *meeting);
  } else {
    block.stop(fiber, Wait::kWarp, what, place);
    yield(block);
  }
}

void warp_barrier(uint32_t mask, Where where) { meet(mask, "__syncwarp", where, complete_warp_barrier); }

uint64_t shuffle(uint32_t mask, uint64_t value, Shuffle kind, int argument, int width, Where where) {
  Fiber& fiber = *this_block->current;
  fiber.exchange.value = value;
  fiber.exchange.kind = int(kind);
  fiber.exchange.argument = argument;
  fiber.exchange.width = width;
  meet(mask, "__shfl_sync", where, complete_shuffle);
  return fiber.exchange.value;
}

uint32_t ballot(uint32_t mask, bool predicate, Where where) {
  Fiber& fiber = *this_block->current;
  fiber.exchange.value = predicate;
  meet(mask, "__ballot_sync", where, complete_ballot);
  return uint32_t(fiber.exchange.value);
}

uint32_t match_any(uint32_t mask, uint64_t value, Where where) {
  Fiber& fiber = *this_block->current;
  fiber.exchange.value = value;
  meet(mask, "__match_any_sync", where, complete_match);
  return uint32_t(fiber.exchange.value);
}

uint32_t reduce(uint32_t mask, uint32_t value, WarpReduction kind, bool is_signed, Where where) {
  Fiber& fiber = *this_block->current;
  fiber.exchange.value = value;
  fiber.exchange.kind = int(kind);
  fiber.exchange.argument = is_signed;
  meet(mask, "__reduce_sync", where, complete_reduce);
  return uint32_t(fiber.exchange.value);
}

}  // namespace emulator
