// SPDX-License-Identifier: Apache-2.0
// torch binding of w8a8_linear on the CPU.
#include "bind/w8a8_linear.h"

#include <torch/library.h>

namespace pyspec {

TORCH_LIBRARY_IMPL(pyspec, CPU, m) {
  m.impl("w8a8_linear", w8a8_linear<on_cpu<W8A8LinearParams, w8a8_linear_cpu>, Place::kCpu>);
}

}  // namespace pyspec
