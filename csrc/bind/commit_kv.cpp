// SPDX-License-Identifier: Apache-2.0
// torch binding of commit_kv on the CPU.
#include "bind/commit_kv.h"

#include <torch/library.h>

namespace pyspec {

TORCH_LIBRARY_IMPL(pyspec, CPU, m) {
  m.impl("commit_kv", commit_kv<on_cpu<CommitKvParams, commit_kv_cpu>, Place::kCpu>);
}

}  // namespace pyspec
