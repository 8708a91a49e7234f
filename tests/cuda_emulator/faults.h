// SPDX-License-Identifier: Apache-2.0
// Signals of a kernel's wrong accesses become findings; the block is given up and Python goes on.
#pragma once

#include <csignal>
#include <memory>

#include "runtime.h"

namespace emulator {

// Installed while an OS thread runs blocks; what was installed before comes back.
class FaultHandler {
 public:
  FaultHandler();
  ~FaultHandler();
  FaultHandler(const FaultHandler&) = delete;
  FaultHandler& operator=(const FaultHandler&) = delete;

 private:
  std::unique_ptr<char[]> stack_;  // a kernel's own may be what overflowed
  stack_t old_stack_;
};

}  // namespace emulator
