// SPDX-License-Identifier: Apache-2.0
// What csrc/cuda/bind.cpp needs of the emulator: the function of a kernel in the library that the current
// call has chosen (checked or not, with or without a planted bug), and allocations with guard pages.
#pragma once

#include <c10/core/CPUAllocator.h>

#include <stdexcept>
#include <string>

#include "bind/launch.h"
#include "memory.h"

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

// torch's allocator of CPU memory while an emulated op runs: outputs and workspaces end at guard pages too.
struct GuardedAllocator final : c10::Allocator {
  static void release(void* data) { free_guarded(data); }
  c10::DataPtr allocate(size_t bytes) override {
    void* const data = allocate_guarded(bytes);
    return {data, data, release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

// Of the GPU that the current call is for.
inline pyspec::DeviceLimits device_limits{};

}  // namespace emulator

extern "C" {
void emulator_set_device_limits(int num_sms, int block_shared_bytes) {
  emulator::device_limits = {num_sms, block_shared_bytes, block_shared_bytes + 1024};
}

void emulator_set_find_kernel(emulator::FindKernel find) { emulator::find_kernel = find; }

void emulator_guard_allocations(bool guard) {
  static emulator::GuardedAllocator guarded;
  static c10::Allocator* const plain = c10::GetCPUAllocator();
  c10::SetCPUAllocator(guard ? &guarded : plain);
}
}
