// SPDX-License-Identifier: Apache-2.0
// torch binding of rms_norm and add_rms_norm on the CPU.
#include "bind/rms_norm.h"

#include <torch/library.h>

namespace pyspec {

TORCH_LIBRARY_IMPL(pyspec, CPU, m) {
  m.impl("rms_norm", rms_norm<on_cpu<RmsNormParams, rms_norm_cpu>>);
  m.impl("add_rms_norm", add_rms_norm<on_cpu<RmsNormParams, rms_norm_cpu>>);
}

}  // namespace pyspec
