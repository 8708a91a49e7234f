// SPDX-License-Identifier: Apache-2.0
// torch binding of sample on the CPU.
#include "bind/sample.h"

#include <torch/library.h>

namespace pyspec {

TORCH_LIBRARY_IMPL(pyspec, CPU, m) {
  m.impl("sample", sample<on_cpu<SampleParams, sample_cpu>, Place::kCpu>);
}

}  // namespace pyspec
