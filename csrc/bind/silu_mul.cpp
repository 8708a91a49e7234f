// SPDX-License-Identifier: Apache-2.0
// torch bindings of silu_mul and gelu_mul on the CPU.
#include "bind/silu_mul.h"

#include <torch/library.h>

namespace pyspec {

TORCH_LIBRARY_IMPL(pyspec, CPU, m) {
  m.impl("silu_mul", silu_mul<on_cpu<SiluMulParams, silu_mul_cpu>>);
  m.impl("gelu_mul", gelu_mul<on_cpu<SiluMulParams, silu_mul_cpu>>);
}

}  // namespace pyspec
