// SPDX-License-Identifier: Apache-2.0
// torch's CPU memory from the emulator: while a kernel's caller runs, outputs and workspaces end at guard
// pages too.
#include <c10/core/CPUAllocator.h>

#include <cstring>

#include "memory.h"

namespace emulator {
namespace {

struct GuardedAllocator final : c10::Allocator {
  static void release(void* data) { free_guarded(data); }
  c10::DataPtr allocate(size_t bytes) override {
    void* const data = allocate_guarded(bytes);
    return {data, data, release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return release; }
  void copy_data(void* to, const void* from, size_t bytes) const override { std::memcpy(to, from, bytes); }
};

}  // namespace
}  // namespace emulator

extern "C" void emulator_guard_allocations(bool guard) {
  static emulator::GuardedAllocator guarded;
  static c10::Allocator* const plain = c10::GetCPUAllocator();
  c10::SetCPUAllocator(guard ? &guarded : plain);
}
