// SPDX-License-Identifier: Apache-2.0
// The order of accesses: within a block by the clocks of its warps, between blocks by fences and atomics.
#pragma once

#include "runtime.h"

namespace emulator {

// Who accessed something, when, and where (an index that shadow.cpp gives). Between two barriers of its warp
// the fences that a thread has passed tell its own accesses apart.
struct Stamp {
  uint32_t block, clock;
  uint16_t launch, thread, fences, place;
};

uint16_t current_launch();
void begin_launch_order();
void begin_block_order(const Block& block);
bool ordered_in_block(const Block& block, const Fiber& fiber, const Stamp& stamp);
bool ordered_between_blocks(const Block& block, const Fiber& fiber, const Stamp& stamp);
bool has_acquired();  // whether this block has seen what another has released

// An atomic of this thread: it takes what others have released at the address, and releases what is fenced.
void synchronise_blocks(Block& block, Fiber& fiber, const void* address);

}  // namespace emulator
