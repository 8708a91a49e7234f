// SPDX-License-Identifier: Apache-2.0
// torch binding of verify_tree on the CPU.
#include "bind/verify_tree.h"

#include <torch/library.h>

namespace pyspec {

TORCH_LIBRARY_IMPL(pyspec, CPU, m) {
  m.impl("verify_tree", verify_tree<on_cpu<VerifyTreeParams, verify_tree_cpu>, Place::kCpu>);
}

}  // namespace pyspec
