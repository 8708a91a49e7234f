// SPDX-License-Identifier: Apache-2.0
// What csrc/cuda/bind.cpp needs of the emulator: the function of a kernel in the library that the current
// call has chosen (checked or not), and the limits of the GPU.
#pragma once

#include <stdexcept>
#include <string>

#include "bind/launch.h"

namespace emulator {

// Address of pyspec::<kernel>_cuda(const pyspec::<Params>&, void*), or null: the caller has the reason. Set
// from Python, which compiles what is missing.
using FindKernel = void* (*)(const char* kernel, const char* params);
inline FindKernel find_kernel = nullptr;

template <typename Params>
auto compiled_kernel(const char* kernel, const char* params) {
  void* const address = find_kernel ? find_kernel(kernel, params) : nullptr;
  if (!address) throw std::runtime_error(std::string(kernel) + ": the emulated kernel could not be loaded");
  return reinterpret_cast<void (*)(const Params&, void*)>(address);
}

// Of the GPU that the current call is for.
inline pyspec::DeviceLimits device_limits{};

}  // namespace emulator

extern "C" {
void emulator_set_device_limits(int num_sms, int block_shared_bytes) {
  emulator::device_limits = {num_sms, block_shared_bytes, block_shared_bytes + 1024};
}

void emulator_set_find_kernel(emulator::FindKernel find) { emulator::find_kernel = find; }
}
