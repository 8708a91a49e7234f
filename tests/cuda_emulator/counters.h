// SPDX-License-Identifier: Apache-2.0
// What a kernel moves and computes, put together per warp instruction as the hardware does it: global memory
// in sectors of 32 bytes, shared memory in wavefronts of 32 banks of 4 bytes. The checked build's loads and
// stores are those of the source: vector types as one access, nothing merged.
//
// Lanes run one after another between the instructions in which they meet; the n-th time that a lane comes to
// a place since the last of these belongs to the same warp instruction as the other lanes' n-th time.
#pragma once

#include "runtime.h"

namespace emulator {

void clear_counters();
void begin_counting_block();
void count_barrier();
void flush_warp(Block& block, int warp);  // its lanes have met: their accesses can be put together
void flush_block(Block& block);
void count_access(const Fiber& fiber, const void* address, int bytes, bool write, bool is_shared,
                  Place place);
void count_atomic(const void* address, bool is_shared);
template <typename T>
void count_mma(const T* a, const T* b, int depth);

struct Buffer;
void retire_counters(const Buffer& buffer);  // it is about to be freed

}  // namespace emulator
