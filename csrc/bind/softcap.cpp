// SPDX-License-Identifier: Apache-2.0
// torch binding of softcap on the CPU.
#include "bind/softcap.h"

#include <torch/library.h>

namespace pyspec {

TORCH_LIBRARY_IMPL(pyspec, CPU, m) { m.impl("softcap", softcap<on_cpu<SoftcapParams, softcap_cpu>>); }

}  // namespace pyspec
