// SPDX-License-Identifier: Apache-2.0
// Signals of a kernel's wrong accesses, and of one that does not come to an end, become findings; the block
// is given up and Python goes on.
#pragma once

#include <csignal>
#include <ctime>
#include <memory>

#include "runtime.h"

namespace emulator {

// Addresses of a library's code.
struct CodeRange {
  uintptr_t begin = 0, end = 0;
  bool holds(uintptr_t pc) const { return begin <= pc && pc < end; }
};
CodeRange code_around(const void* address);

// Installed while an OS thread runs blocks; what was installed before comes back.
class FaultHandler {
 public:
  explicit FaultHandler(CodeRange kernel);
  ~FaultHandler();
  FaultHandler(const FaultHandler&) = delete;
  FaultHandler& operator=(const FaultHandler&) = delete;

 private:
  std::unique_ptr<char[]> stack_;  // a kernel's own may be what overflowed
  stack_t old_stack_;
  timer_t timer_;
};

}  // namespace emulator
