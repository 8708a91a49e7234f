// SPDX-License-Identifier: Apache-2.0
// One pool of threads for the whole process. Items are claimed one by one, nobody waits for a thread that has
// not joined, and every wait spins briefly and then sleeps, so that a busy co-tenant on a core costs in
// proportion and never stalls a call.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace pyspec {

int num_threads();
void set_num_threads(int threads);  // >= 1; waits for a running call to end

// Calls fn(arg, i) for i in [0, items), on this thread and the pool's, and returns when all are done. Items
// are begun in their order, so that memory is read upwards, but must not depend on each other or on who runs
// them. Nested calls and calls beside a running one work alone.
void run_items(int64_t items, void (*fn)(void*, int64_t), void* arg);

template <typename F>
void parallel_for(int64_t items, F&& f) {
  run_items(
      items, [](void* arg, int64_t i) { (*static_cast<std::remove_reference_t<F>*>(arg))(i); },
      const_cast<void*>(static_cast<const void*>(&f)));
}

// At least `bytes` of memory of this thread, aligned to 64 bytes; contents are undefined. One user at a time
// of each of two buffers: 1 is for kernels that use others' code, which takes 0.
void* thread_scratch(size_t bytes, int buffer = 0);

}  // namespace pyspec
