// SPDX-License-Identifier: Apache-2.0
// torch binding of append_kv on the CPU.
#include "bind/append_kv.h"

#include <torch/library.h>

namespace pyspec {

TORCH_LIBRARY_IMPL(pyspec, CPU, m) {
  m.impl("append_kv", append_kv<on_cpu<AppendKvParams, append_kv_cpu>, Place::kCpu>);
}

}  // namespace pyspec
