// SPDX-License-Identifier: Apache-2.0
// torch binding of build_tree on the CPU.
#include "bind/build_tree.h"

#include <torch/library.h>

namespace pyspec {

TORCH_LIBRARY_IMPL(pyspec, CPU, m) {
  m.impl("build_tree", build_tree<on_cpu<BuildTreeParams, build_tree_cpu>, Place::kCpu>);
}

}  // namespace pyspec
