// SPDX-License-Identifier: Apache-2.0
// torch binding of w4a16_linear on the CPU.
#include "bind/w4a16_linear.h"

#include <torch/library.h>

namespace pyspec {

TORCH_LIBRARY_IMPL(pyspec, CPU, m) {
  m.impl("w4a16_linear", w4a16_linear<on_cpu<W4A16LinearParams, w4a16_linear_cpu>, Place::kCpu>);
}

}  // namespace pyspec
