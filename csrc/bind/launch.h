// SPDX-License-Identifier: Apache-2.0
// How a torch binding that serves several devices calls the kernel of one: `launch(device, params)`. On a GPU
// no binding reads a tensor's values: that would wait for the device, and break the capture of a graph.
#pragma once

#include <c10/core/Device.h>

namespace pyspec {

template <typename Params>
using Launch = void (*)(at::Device device, const Params& p);

enum class Place { kCpu, kGpu };

// Of a GPU: multiprocessors, and the bytes of shared memory that a block and a multiprocessor may have.
struct DeviceLimits {
  int num_sms, block_shared_bytes, sm_shared_bytes;
};

template <typename Params, void (*kKernel)(const Params&)>
void on_cpu(at::Device, const Params& p) {
  kKernel(p);
}

}  // namespace pyspec
