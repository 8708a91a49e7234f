// SPDX-License-Identifier: Apache-2.0
// The signal handler: it describes the fault and returns to the scheduler's stack instead of the kernel's.
// The time limit of a launch is one of CPU time on each OS thread: a loaded machine does not matter.
#include "faults.h"

#include <link.h>
#include <ucontext.h>
#include <unistd.h>

#include <mutex>

#include "fiber.h"
#include "memory.h"

namespace emulator {

namespace {

constexpr int kSignals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGXCPU};
constexpr int kNumSignals = 5;
constexpr long kAgainAfter = 1000000;  // ns
constexpr size_t kHandlerStack = 128 << 10;
struct sigaction old_actions[kNumSignals];
CodeRange kernel_code;
int users = 0;
std::mutex mutex;

std::string fault_text(const Block& block, int signal, const siginfo_t& info, const ucontext_t& context) {
  const Fiber& fiber = *block.current;
  if (signal == SIGFPE) return thread_name(fiber) + " divides by zero";
  if (signal == SIGILL) return thread_name(fiber) + " runs into unreachable code";
  const auto* const p = static_cast<const unsigned char*>(info.si_addr);
  if (size_t(p - block.stacks) < kStacksBytes)
    return thread_name(fiber) + format(" has more than %zu bytes of local variables", kStack - 4096);
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
    for (int i = 0; i < kNumSignals; ++i)
      if (kSignals[i] == signal) sigaction(signal, &old_actions[i], nullptr);
    return;
  }
  const auto pc = uintptr_t(context.uc_mcontext.gregs[REG_RIP]);
  const Place place =
      Place::counter(reinterpret_cast<const void*>(pc + 1));  // places are behind their instruction
  if (signal == SIGXCPU) {
    // Not while the machine itself is at work, with locks perhaps: the timer goes off again.
    block->out_of_time = true;
    if (!kernel_code.holds(pc)) return;
    report_time(place);
  } else {
    report(signal == SIGSEGV || signal == SIGBUS ? "out of bounds" : "fault", place,
           fault_text(*block, signal, *info, context));
  }
  block->aborted = true;
  context.uc_mcontext.gregs[REG_RDI] = reinterpret_cast<greg_t>(block->scheduler_stack_pointer);
  context.uc_mcontext.gregs[REG_RIP] = reinterpret_cast<greg_t>(emulator_resume);
}

void install() {
  struct sigaction action = {};
  action.sa_sigaction = handle;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int i = 0; i < kNumSignals; ++i) sigaction(kSignals[i], &action, &old_actions[i]);
}

}  // namespace

void report_time(Place place) {
  report("time", place,
         thread_name(*this_block->current) + format(" still runs after %g s", settings().time_limit));
}

CodeRange code_around(const void* address) {
  struct Search {
    uintptr_t address;
    CodeRange found;
  } search = {reinterpret_cast<uintptr_t>(address), {}};
  dl_iterate_phdr(
      [](dl_phdr_info* library, size_t, void* raw) {
        auto& wanted = *static_cast<Search*>(raw);
        for (int i = 0; i < library->dlpi_phnum; ++i) {
          const uintptr_t begin = library->dlpi_addr + library->dlpi_phdr[i].p_vaddr;
          const CodeRange segment = {begin, begin + library->dlpi_phdr[i].p_memsz};
          if (library->dlpi_phdr[i].p_type == PT_LOAD && segment.holds(wanted.address))
            wanted.found = segment;
        }
        return int(wanted.found.end != 0);
      },
      &search);
  return search.found;
}

FaultHandler::FaultHandler(CodeRange kernel) : stack_(new char[kHandlerStack]) {
  const stack_t own = {.ss_sp = stack_.get(), .ss_flags = 0, .ss_size = kHandlerStack};
  sigaltstack(&own, &old_stack_);
  sigevent event = {};
  event.sigev_notify = SIGEV_THREAD_ID;
  event.sigev_signo = SIGXCPU;
  event._sigev_un._tid = gettid();
  timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &timer_);
  const auto seconds = time_t(settings().time_limit);
  const long fraction = long((settings().time_limit - double(seconds)) * 1e9);
  const itimerspec limit = {.it_interval = {0, kAgainAfter}, .it_value = {seconds, fraction + 1}};
  const std::lock_guard lock(mutex);
  kernel_code = kernel;
  if (users++ == 0) install();
  timer_settime(timer_, 0, &limit, nullptr);
}

FaultHandler::~FaultHandler() {
  timer_delete(timer_);
  {
    const std::lock_guard lock(mutex);
    if (--users == 0)
      for (int i = 0; i < kNumSignals; ++i) sigaction(kSignals[i], &old_actions[i], nullptr);
  }
  sigaltstack(&old_stack_, nullptr);
}

}  // namespace emulator
