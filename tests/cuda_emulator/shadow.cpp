// SPDX-License-Identifier: Apache-2.0
// The checker's memory and its rules; see shadow.h. Words are checked as one; where a word is accessed in
// parts, its bytes are.
#include "shadow.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>

#include "block_order.h"
#include "counters.h"
#include "memory.h"

namespace emulator {

// Who accessed a word last. Launches count from 1: a stamp of launch 0 stands for nobody.
struct Access {
  Stamp write, read;
  uint32_t readers;  // index of the warps' reads, where several warps read without order; 0: `read` is all
  uint8_t written : 1, copying : 1, atomic : 1, read_by_blocks : 1;
};

// Shadow of a word, and, once it is accessed in parts, of its bytes.
struct Cell {
  Access whole;
  Access* bytes;
};

namespace {

constexpr uint16_t kSeveralLanes = 0x8000;  // of Stamp::thread: more than one lane of its warp has read

struct WarpReads {
  Stamp of[kMaxWarps];
};

struct Shared {
  std::vector<Cell> words;
  std::vector<WarpReads> reads;
  std::vector<std::unique_ptr<std::array<Access, 4>>> split;
};
Shared shared;  // the checker runs one block at a time

// Places by a number of 16 bits; what comes after the table is full has number 0, for none.
struct PlaceTable {
  std::vector<Place> places = std::vector<Place>(1 << 16);
  uint16_t number_of(const Place& place) {
    uint16_t i = uint16_t((place.at ^ reinterpret_cast<uint64_t>(place.file)) * 0x9e3779b97f4a7c15u >> 48);
    for (int tries = 0; tries < 64; ++tries, ++i) {
      if (places[i] == place) return i;
      if (i == 0 || places[i].at != 0) continue;
      places[i] = place;
      return i;
    }
    return 0;
  }
};
PlaceTable table;

Stamp stamp_of(const Block& block, const Fiber& fiber, const Place& place) {
  return {block.index,  block.warps[fiber.warp].clock, current_launch(), uint16_t(fiber.thread),
          fiber.fences, table.number_of(place)};
}

// What an access is about, for the text of a finding.
struct Target {
  const void* address;
  bool write, atomic, is_shared;
  Place place;
};

std::string target_text(const Block& block, const Target& target) {
  if (!target.is_shared) return describe_address(target.address);
  return format("byte %td of shared memory", static_cast<const unsigned char*>(target.address) - block.smem);
}

void race(const Block& block, const Fiber& fiber, const Target& target, const Stamp& other,
          bool other_writes) {
  const int thread = other.thread & ~kSeveralLanes;
  std::string who = format("thread %d", thread);
  if (other.block != block.index) who += format(" of block %u", other.block);
  report("race", target.place,
         format("%s %s %s; no barrier, fence or atomic orders this behind %s by %s",
                thread_name(fiber).c_str(), target.write ? "writes" : "reads",
                target_text(block, target).c_str(), other_writes ? "the write" : "the read", who.c_str()),
         table.places[other.place]);
}

bool is_ordered(const Block& block, const Fiber& fiber, const Stamp& stamp) {
  if (stamp.launch != current_launch()) return true;
  if (stamp.block != block.index) return ordered_between_blocks(block, fiber, stamp);
  return ordered_in_block(block, fiber, stamp);
}

void note_read(Block& block, const Fiber& fiber, Access& access, const Stamp& me) {
  Stamp& last = access.read;
  const bool same_block = last.launch == me.launch && last.block == me.block;
  const bool same_warp = same_block && (last.thread & ~kSeveralLanes) / kWarp == fiber.warp;
  if (access.readers == 0 && same_block && last.thread == me.thread) {
    last = me;
    return;
  }
  if (access.readers == 0 && same_warp && last.clock == me.clock) {
    last.thread |= kSeveralLanes;
    return;
  }
  if (is_ordered(block, fiber, last) &&
      (access.readers == 0 || last.launch != me.launch || last.block != me.block)) {
    access.read_by_blocks &= last.launch == me.launch;
    last = me;
    access.readers = 0;
    return;
  }
  if (last.block != me.block) {
    access.read_by_blocks = 1;
    access.readers = 0;
    last = me;
    return;
  }
  if (access.readers == 0) {
    shared.reads.emplace_back();
    access.readers = uint32_t(shared.reads.size() - 1);
    shared.reads.back().of[(last.thread & ~kSeveralLanes) / kWarp] = last;
  }
  Stamp& own = shared.reads[access.readers].of[fiber.warp];
  if (own.launch == me.launch && own.clock == me.clock && own.thread != me.thread) {
    own.thread |= kSeveralLanes;
  } else {
    own = me;
  }
  last = me;
}

// The read that this write is not ordered behind, or null.
const Stamp* unordered_read(const Block& block, const Fiber& fiber, const Access& access) {
  if (access.readers && access.read.launch == current_launch() && access.read.block == block.index) {
    for (const Stamp& read : shared.reads[access.readers].of)
      if (!is_ordered(block, fiber, read)) return &read;
    return nullptr;
  }
  if (!is_ordered(block, fiber, access.read)) return &access.read;
  // Only the last of several blocks is known: a block that has seen any other block's atomic may know them
  // all.
  if (access.read_by_blocks && access.read.launch == current_launch() && !has_acquired()) return &access.read;
  return nullptr;
}

Access written_by(const Stamp& me, bool atomic) { return {me, {}, 0, 1, 0, atomic, 0}; }

// Whether something is wrong with it.
bool check_cell(Block& block, Fiber& fiber, Access& access, const Stamp& me, const Target& target) {
  bool wrong = false;
  if (access.copying) {
    report("cp.async", target.place,
           format("%s %s %s while a cp.async of thread %d to it has not been waited for",
                  thread_name(fiber).c_str(), target.write ? "writes" : "reads",
                  target_text(block, target).c_str(), int(access.write.thread)),
           table.places[access.write.place]);
    access.copying = 0;
    wrong = true;
  }
  const bool atomics = target.atomic && access.atomic;
  if (!atomics && !is_ordered(block, fiber, access.write)) {
    race(block, fiber, target, access.write, true);
    access.write = {};
    wrong = true;
  }
  if (!target.write) {
    if (target.is_shared && !access.written) {
      report("unwritten", target.place,
             format("%s reads %s, which nobody has written", thread_name(fiber).c_str(),
                    target_text(block, target).c_str()));
      access.written = 1;
      wrong = true;
    }
    note_read(block, fiber, access, me);
    return wrong;
  }
  if (const Stamp* read = unordered_read(block, fiber, access)) {
    race(block, fiber, target, *read, false);
    wrong = true;
  }
  access = written_by(me, target.atomic);
  return wrong;
}

Access* split_bytes(Cell& cell, bool is_shared) {
  if (is_shared) {
    shared.split.push_back(std::make_unique<std::array<Access, 4>>());
    cell.bytes = shared.split.back()->data();
  } else {
    cell.bytes = static_cast<Access*>(std::malloc(4 * sizeof(Access)));
  }
  std::fill_n(cell.bytes, 4, cell.whole);
  return cell.bytes;
}

template <typename Visit>
void for_each_access(Cell* words, size_t offset, size_t bytes, bool is_shared, Visit visit) {
  for (const size_t end = offset + bytes; offset < end;) {
    Cell& cell = words[offset / 4];
    const size_t first = offset % 4, count = std::min(end - offset, 4 - first);
    if (count == 4 && !cell.bytes) {
      visit(cell.whole, offset);
    } else {
      Access* const parts = cell.bytes ? cell.bytes : split_bytes(cell, is_shared);
      for (size_t i = 0; i < count; ++i) visit(parts[first + i], offset + i);
    }
    offset += count;
  }
}

void out_of_bounds(const Fiber& fiber, const Target& target, int bytes, const std::string& what) {
  report("out of bounds", target.place,
         format("%s %s %d bytes, %s", thread_name(fiber).c_str(), target.write ? "writes" : "reads", bytes,
                what.c_str()));
}

bool in_shared(const Block& block, const void* address, size_t bytes) {
  const size_t offset = size_t(static_cast<const unsigned char*>(address) - block.smem);
  return offset < block.smem_bytes && offset + bytes <= block.smem_bytes;
}

bool in_arena(const Block& block, const void* address) {
  return size_t(static_cast<const unsigned char*>(address) - block.arena) < block.arena_bytes;
}

void check_shared(Block& block, Fiber& fiber, const Target& target, int bytes) {
  const auto* const p = static_cast<const unsigned char*>(target.address);
  if (!in_shared(block, p, size_t(bytes)))
    return out_of_bounds(fiber, target, bytes,
                         format("byte %td of %zu bytes of shared memory", p - block.smem, block.smem_bytes));
  const Stamp me = stamp_of(block, fiber, target.place);
  bool wrong = false;  // the first byte is enough of a finding
  for_each_access(shared.words.data(), size_t(p - block.smem), size_t(bytes), true,
                  [&](Access& access, size_t offset) {
                    if (wrong) {
                      if (target.write) access = written_by(me, target.atomic);
                      return;
                    }
                    Target at = target;
                    at.address = block.smem + offset;
                    wrong = check_cell(block, fiber, access, me, at);
                  });
}

void check_global(Block& block, Fiber& fiber, Buffer& buffer, const Target& target, int bytes) {
  const auto offset = static_cast<const unsigned char*>(target.address) - buffer.data;
  if (offset < 0 || size_t(offset) + size_t(bytes) > buffer.bytes)
    return out_of_bounds(fiber, target, bytes, describe_address(target.address));
  if (!buffer.words) buffer.words = static_cast<Cell*>(std::calloc(buffer.bytes / 4 + 1, sizeof(Cell)));
  const Stamp me = stamp_of(block, fiber, target.place);
  for_each_access(buffer.words, size_t(offset), size_t(bytes), false, [&](Access& access, size_t at_offset) {
    Target at = target;
    at.address = buffer.data + at_offset;
    check_cell(block, fiber, access, me, at);
  });
  if (target.write && !target.atomic) fiber.wrote_unfenced = true;
}

void check_target(Block& block, Fiber& fiber, const Target& target, int bytes) {
  if (target.is_shared) {
    check_shared(block, fiber, target, bytes);
  } else if (Buffer* const buffer = find_buffer(target.address)) {
    check_global(block, fiber, *buffer, target, bytes);
  }
}

void require_aligned(const char* what, const void* address, int bytes, Where where) {
  if (reinterpret_cast<uintptr_t>(address) % size_t(bytes) == 0) return;
  report("alignment", Place::line(where),
         format("%s: %s of %d bytes at an address that is no multiple of it",
                thread_name(*this_block->current).c_str(), what, bytes));
  abort_block();
}

}  // namespace

void begin_block(Block& block) {
  if (settings().counting) begin_counting_block();
  if (!settings().checked) return;
  shared.words.assign(block.smem_bytes / 4 + 1, Cell{});
  shared.reads.resize(1);
  shared.split.clear();
  begin_block_order(block);
}

void end_block(Block& block) {
  if (settings().counting) flush_block(block);
}

void check_access(const void* address, int bytes, bool write, Place place) {
  Block* const block = this_block;
  if (!block || !block->current) return;
  if (block->out_of_time) {
    report_time(place);
    abort_block();
  }
  const auto* const p = static_cast<const unsigned char*>(address);
  if (size_t(p - block->stacks) < kStacksBytes) return;  // a local variable
  Fiber& fiber = *block->current;
  const Target target = {address, write, false, in_arena(*block, address), place};
  if (settings().checked) check_target(*block, fiber, target, bytes);
  if (settings().counting) count_access(fiber, address, bytes, write, target.is_shared, place);
}

void check_shared_operand(const char* what, const void* address, int bytes, bool write, Where where) {
  Block& block = *this_block;
  Fiber& fiber = *block.current;
  const Target target = {address, write, false, true, Place::line(where)};
  if (!in_shared(block, address, size_t(bytes))) {
    out_of_bounds(fiber, target, bytes,
                  std::string(what) + (in_arena(block, address) ? ": past the end of shared memory"
                                                                : ": no address in shared memory"));
    abort_block();
  }
  require_aligned(what, address, bytes, where);
  if (settings().checked && !write) check_shared(block, fiber, target, bytes);
  if (settings().counting) count_access(fiber, address, bytes, write, true, target.place);
}

void check_global_operand(const void* address, int bytes, Where where) {
  Block& block = *this_block;
  Fiber& fiber = *block.current;
  const Target target = {address, false, false, false, Place::line(where)};
  Buffer* const buffer = find_buffer(address);
  const size_t offset = buffer ? size_t(static_cast<const unsigned char*>(address) - buffer->data) : 0;
  if (!buffer || offset + size_t(bytes) > buffer->bytes || offset > buffer->bytes) {
    out_of_bounds(fiber, target, bytes, describe_address(address));
    abort_block();
  }
  if (settings().checked) check_global(block, fiber, *buffer, target, bytes);
  if (settings().counting) count_access(fiber, address, bytes, false, false, target.place);
}

void begin_copy(Block& block, Fiber& fiber, const void* smem, int bytes) {
  if (!settings().checked) return;
  check_shared(block, fiber, {smem, true, false, true, fiber.copies.back().place}, bytes);
  const size_t offset = size_t(static_cast<const unsigned char*>(smem) - block.smem);
  for_each_access(shared.words.data(), offset, size_t(bytes), true,
                  [](Access& access, size_t) { access.copying = 1; });
}

void end_copy(Block& block, Fiber& fiber, const void* smem, int bytes) {
  if (!settings().checked) return;
  Stamp me = stamp_of(block, fiber, {});
  const size_t offset = size_t(static_cast<const unsigned char*>(smem) - block.smem);
  for_each_access(shared.words.data(), offset, size_t(bytes), true, [&](Access& access, size_t) {
    access.copying = 0;
    me.place = access.write.place;  // of the cp.async
    access.write = me;
  });
}

void begin_atomic(const void* address, int bytes, Where where) {
  Block& block = *this_block;
  Fiber& fiber = *block.current;
  const bool is_shared = in_arena(block, address);
  const Target target = {address, true, true, is_shared, Place::line(where)};
  require_aligned("an atomic", address, bytes, where);
  if (!is_shared && !find_buffer(address)) return;  // a __device__ variable
  if (settings().checked) {
    if (is_shared) {
      const Access& access =
          shared.words[size_t(static_cast<const unsigned char*>(address) - block.smem) / 4].whole;
      if (in_shared(block, address, size_t(bytes)) && !access.written) {
        Target read = target;
        read.write = false;
        check_shared(block, fiber, read, bytes);
      }
    } else {
      synchronise_blocks(block, fiber, address);
    }
    check_target(block, fiber, target, bytes);
  }
  if (settings().counting) count_atomic(address, is_shared);
}

}  // namespace emulator
