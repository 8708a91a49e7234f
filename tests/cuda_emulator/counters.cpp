// SPDX-License-Identifier: Apache-2.0
// The counters; see counters.h.
#include "counters.h"

namespace emulator {

void count_barrier(int) {}
void end_of_instruction(Block&, int) {}
void flush_block(Block&) {}
void count_access(Fiber&, const void*, int, bool, bool, Place) {}
void count_matrix_or_copy(Fiber&, const void*, int, bool, Place) {}
void count_atomic(Fiber&, const void*, int, bool) {}
template <typename T>
void count_mma(const T*, const T*, int) {}
template void count_mma(const double*, const double*, int);
template void count_mma(const int32_t*, const int32_t*, int);

}  // namespace emulator
