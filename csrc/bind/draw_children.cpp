// SPDX-License-Identifier: Apache-2.0
// torch binding of draw_children on the CPU.
#include "bind/draw_children.h"

#include <torch/library.h>

namespace pyspec {

TORCH_LIBRARY_IMPL(pyspec, CPU, m) {
  m.impl("draw_children", draw_children<on_cpu<DrawChildrenParams, draw_children_cpu>, Place::kCpu>);
}

}  // namespace pyspec
