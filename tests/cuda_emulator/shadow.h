// SPDX-License-Identifier: Apache-2.0
// The checker: what every word of shared and global memory was last written and read by, and whether that is
// ordered before the access at hand.
//
// Within a warp __syncwarp and barriers order accesses, between warps barriers do. Between blocks it takes a
// chain: a write, __threadfence, an atomic; the same atomic in another block, then the access. A block is
// taken to have what its atomic has seen from there on; its other threads once a barrier lies between.
// Atomics do not race with atomics. A launch is ordered before the next one.
#pragma once

#include "runtime.h"

namespace emulator {

void begin_launch(const char* kernel);
void begin_block(Block& block);
void end_block(Block& block);

// A barrier of the lanes in waiting[warp], or __syncwarp: what comes after is ordered behind what was before.
void order_by_barrier(Block& block, const uint32_t (&waiting)[kMaxWarps]);
void order_by_warp_barrier(Block& block, int warp);

// A load or store of the kernel, from the instrumentation of the checked build.
void check_access(const void* address, int bytes, bool write, Place place);

// Operands of warp instructions and of cp.async, in both builds: in bounds and aligned, or the block is given
// up.
void check_shared_operand(const char* what, const void* address, int bytes, bool write, Where where);
void check_global_operand(const void* address, int bytes, Where where);

// Between the two the bytes belong to a cp.async.
void begin_copy(Block& block, Fiber& fiber, const void* smem, int bytes);
void end_copy(Block& block, Fiber& fiber, const void* smem, int bytes);
void end_of_copies(const Fiber& fiber);

}  // namespace emulator
