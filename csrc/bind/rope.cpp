// SPDX-License-Identifier: Apache-2.0
// torch binding of rope on the CPU.
#include "bind/rope.h"

#include <torch/library.h>

namespace pyspec {

TORCH_LIBRARY_IMPL(pyspec, CPU, m) { m.impl("rope", rope<on_cpu<RopeParams, rope_cpu>, Place::kCpu>); }

}  // namespace pyspec
