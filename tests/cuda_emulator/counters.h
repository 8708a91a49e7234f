// SPDX-License-Identifier: Apache-2.0
// What a kernel moves and computes, counted per warp instruction as the hardware would.
#pragma once

#include "runtime.h"

namespace emulator {

void count_barrier(int id);
void end_of_instruction(Block& block,
                        int warp);  // all lanes have met: their accesses so far can be put together
void flush_block(Block& block);
void count_access(Fiber& fiber, const void* address, int bytes, bool write, bool is_shared, Place place);
void count_matrix_or_copy(Fiber& fiber, const void* address, int bytes, bool write, Place place);
void count_atomic(Fiber& fiber, const void* address, int bytes, bool is_shared);
template <typename T>
void count_mma(const T* a, const T* b, int depth);

}  // namespace emulator
