// SPDX-License-Identifier: Apache-2.0
// torch binding of verify_drawn on the CPU.
#include "bind/verify_drawn.h"

#include <torch/library.h>

namespace pyspec {

TORCH_LIBRARY_IMPL(pyspec, CPU, m) {
  m.impl("verify_drawn", verify_drawn<on_cpu<VerifyDrawnParams, verify_drawn_cpu>, Place::kCpu>);
}

}  // namespace pyspec
