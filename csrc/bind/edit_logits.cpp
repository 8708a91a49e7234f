// SPDX-License-Identifier: Apache-2.0
// torch binding of edit_logits on the CPU.
#include "bind/edit_logits.h"

#include <torch/library.h>

namespace pyspec {

TORCH_LIBRARY_IMPL(pyspec, CPU, m) {
  m.impl("edit_logits", edit_logits<on_cpu<EditLogitsParams, edit_logits_cpu>, Place::kCpu>);
}

}  // namespace pyspec
