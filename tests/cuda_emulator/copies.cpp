// SPDX-License-Identifier: Apache-2.0
// cp.async: a copy lands when it is issued, when it is waited for, or at random one of the two. Until it
// lands the destination holds poison; until it is waited for nobody may touch it.
#include <algorithm>

#include "counters.h"
#include "runtime.h"
#include "shadow.h"

namespace emulator {

namespace {

void land(Copy& copy) {
  std::memset(copy.to, 0, size_t(copy.bytes));
  if (copy.valid) std::memcpy(copy.to, copy.from, size_t(copy.bytes));
  copy.landed = true;
}

bool lands_at_once(Block& block) {
  const Copies mode = settings().copies;
  return mode == Copies::kEarly || (mode == Copies::kRandom && block.next_random() & 1);
}

}  // namespace

void copy_async(void* smem, const void* global, int bytes, bool valid, Where where) {
  Block& block = *this_block;
  Fiber& fiber = *block.current;
  check_shared_operand("cp.async", smem, bytes, true, where);
  if (reinterpret_cast<uintptr_t>(global) % size_t(bytes) != 0) {
    report("alignment", Place::line(where),
           format("%s: cp.async of %d bytes from %p", thread_name(fiber).c_str(), bytes, global));
    abort_block();
  }
  if (valid) check_global_operand(global, bytes, where);
  fiber.copies.push_back({static_cast<unsigned char*>(smem), static_cast<const unsigned char*>(global), bytes,
                          valid, false, fiber.copy_group, Place::line(where)});
  begin_copy(block, fiber, smem, bytes);
  if (lands_at_once(block)) {
    land(fiber.copies.back());
  } else {
    std::memset(smem, 0xff, size_t(bytes));
  }
}

void commit_copies() { ++this_block->current->copy_group; }

void wait_for_copies(int pending, Where) {
  Block& block = *this_block;
  Fiber& fiber = *block.current;
  auto& copies = fiber.copies;
  const int64_t finished = int64_t(fiber.copy_group) - pending;  // groups before this one
  size_t done = 0;
  for (; done < copies.size() && copies[done].group < finished; ++done) {
    if (!copies[done].landed) land(copies[done]);
    end_copy(block, fiber, copies[done].to, copies[done].bytes);
  }
  copies.erase(copies.begin(), copies.begin() + std::ptrdiff_t(done));
}

void end_of_copies(const Fiber& fiber) {
  if (fiber.copies.empty()) return;
  report("cp.async", fiber.copies.front().place,
         format("%s exits with %zu copies that it has not waited for", thread_name(fiber).c_str(),
                fiber.copies.size()));
}

}  // namespace emulator
