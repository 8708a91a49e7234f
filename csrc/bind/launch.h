// SPDX-License-Identifier: Apache-2.0
// How a torch binding that serves several devices calls the kernel of one: `launch(device, params)`.
#pragma once

#include <c10/core/Device.h>

namespace pyspec {

template <typename Params>
using Launch = void (*)(at::Device device, const Params& p);

template <typename Params, void (*kKernel)(const Params&)>
void on_cpu(at::Device, const Params& p) {
  kKernel(p);
}

}  // namespace pyspec
