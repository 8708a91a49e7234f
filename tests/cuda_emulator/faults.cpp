// SPDX-License-Identifier: Apache-2.0
// The signal handler: it describes the fault and returns to the scheduler's stack instead of the kernel's.
#include "faults.h"

#include <ucontext.h>

#include <mutex>

#include "fiber.h"
#include "memory.h"

namespace emulator {

namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
constexpr size_t kHandlerStack = 128 << 10;
struct sigaction old_actions[4];
int users = 0;
std::mutex mutex;

std::string fault_text(const Block& block, int signal, const siginfo_t& info, const ucontext_t& context) {
  const Fiber& fiber = *block.current;
  if (signal == SIGFPE) return thread_name(fiber) + " divides by zero";
  if (signal == SIGILL) return thread_name(fiber) + " runs into unreachable code";
  const auto* const p = static_cast<const unsigned char*>(info.si_addr);
  const bool writes = context.uc_mcontext.gregs[REG_ERR] & 2;  // of the page fault's error code
  std::string what;
  if (size_t(p - (block.arena - 4096)) < block.arena_bytes + 8192) {
    what = format("byte %td of %zu bytes of shared memory", p - block.smem, block.smem_bytes);
  } else {
    what = describe_address(p);
    const Buffer* const buffer = find_buffer(p);
    if (buffer && writes && size_t(p - buffer->data) < buffer->bytes)
      what += ", which the op must not change";
  }
  return format("%s %s %s", thread_name(fiber).c_str(), writes ? "writes" : "reads", what.c_str());
}

void handle(int signal, siginfo_t* info, void* raw_context) {
  auto& context = *static_cast<ucontext_t*>(raw_context);
  Block* const block = this_block;
  if (!block || !block->current) {  // not a kernel's: let the earlier handler have it
    for (int i = 0; i < 4; ++i)
      if (kSignals[i] == signal) sigaction(signal, &old_actions[i], nullptr);
    return;
  }
  const auto pc = reinterpret_cast<const void*>(context.uc_mcontext.gregs[REG_RIP]);
  report(signal == SIGSEGV || signal == SIGBUS ? "out of bounds" : "fault", Place::counter(pc),
         fault_text(*block, signal, *info, context));
  block->aborted = true;
  context.uc_mcontext.gregs[REG_RDI] = reinterpret_cast<greg_t>(block->scheduler_stack_pointer);
  context.uc_mcontext.gregs[REG_RIP] = reinterpret_cast<greg_t>(emulator_resume);
}

}  // namespace

FaultHandler::FaultHandler() : stack_(new char[kHandlerStack]) {
  const stack_t own = {.ss_sp = stack_.get(), .ss_flags = 0, .ss_size = kHandlerStack};
  sigaltstack(&own, &old_stack_);
  const std::lock_guard lock(mutex);
  if (users++ > 0) return;
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &action, &old_actions[i]);
}

FaultHandler::~FaultHandler() {
  {
    const std::lock_guard lock(mutex);
    if (--users == 0)
      for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &old_actions[i], nullptr);
  }
  sigaltstack(&old_stack_, nullptr);
}

}  // namespace emulator
