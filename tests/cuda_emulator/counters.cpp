// SPDX-License-Identifier: Apache-2.0
// The counters; see counters.h.
#include "counters.h"

#include <algorithm>
#include <array>
#include <map>
#include <unordered_map>

#include "memory.h"

namespace emulator {

namespace {

constexpr int kSector = 32, kBanks = 32;

struct Event {
  Place place;
  const unsigned char* address;
  uint16_t bytes;
  bool write, is_shared;
};

struct PlaceHash {
  size_t operator()(const Place& place) const {
    return std::hash<uint64_t>()(place.at) ^ std::hash<const void*>()(place.file);
  }
};

struct Wavefronts {
  uint64_t instructions = 0, wavefronts = 0, extra = 0;
};

struct Totals {
  uint64_t mmas = 0, barriers = 0, shared_atomics = 0;
  double useful_mmas = 0;
  std::unordered_map<Place, Wavefronts, PlaceHash> shared;
  std::map<std::string, Traffic> retired;
};

Totals totals;
std::array<std::vector<Event>, kMaxThreads> logs;  // by thread: the checker runs one block at a time
uint32_t block_number = 0;

// One access of each lane that takes part.
struct Instruction {
  Event lanes[kWarp];
  uint32_t active = 0;
};

// Accesses of up to 4 bytes are served for the warp at once, of 8 bytes by half warps, of 16 by quarters; in
// each such part lanes wait for one another where they need different words of a bank.
void count_shared(const Instruction& instruction, const Event& first) {
  const int lanes_at_once = first.bytes <= 4 ? 32 : first.bytes <= 8 ? 16 : 8;
  Wavefronts& counted = totals.shared[first.place];
  ++counted.instructions;
  for (int begin = 0; begin < kWarp; begin += lanes_at_once) {
    const uint32_t part = lanes_at_once == kWarp ? kAllLanes : ((1u << lanes_at_once) - 1) << begin;
    if (!(instruction.active & part)) continue;
    uint64_t words[kBanks][kWarp];
    uint8_t count[kBanks] = {};
    int wavefronts = 1;
    for (uint32_t lanes = instruction.active & part; lanes; lanes &= lanes - 1) {
      const Event& event = instruction.lanes[__builtin_ctz(lanes)];
      const uint64_t address = reinterpret_cast<uint64_t>(event.address);
      for (uint64_t word = address / 4; word <= (address + event.bytes - 1) / 4; ++word) {
        uint64_t* const bank = words[word % kBanks];
        uint8_t& known = count[word % kBanks];
        if (known == kWarp || std::find(bank, bank + known, word) != bank + known) continue;
        bank[known++] = word;
        wavefronts = std::max(wavefronts, int(known));
      }
    }
    counted.wavefronts += uint64_t(wavefronts);
    counted.extra += uint64_t(wavefronts - 1);
  }
}

void count_sector(Buffer& buffer, size_t sector, bool write) {
  constexpr uint32_t kRead = 1u << 31, kWritten = 1u << 30, kBlock = kWritten - 1;
  if (buffer.sectors.empty()) buffer.sectors.resize(buffer.mapping_bytes / kSector);
  uint32_t& known = buffer.sectors[sector];
  Traffic& traffic = buffer.traffic;
  if (write) {
    ++traffic.written_sectors;
    traffic.written_sectors_unique += !(known & kWritten);
    known |= kWritten;
    return;
  }
  ++traffic.read_sectors;
  traffic.read_sectors_per_block += (known & kBlock) != block_number;
  traffic.read_sectors_unique += !(known & kRead);
  known = (known & kWritten) | kRead | block_number;
}

void count_global(const Instruction& instruction, const Event& first) {
  static std::vector<uint64_t> sectors;
  sectors.clear();
  for (uint32_t lanes = instruction.active; lanes; lanes &= lanes - 1) {
    const Event& event = instruction.lanes[__builtin_ctz(lanes)];
    const uint64_t address = reinterpret_cast<uint64_t>(event.address);
    for (uint64_t sector = address / kSector; sector <= (address + event.bytes - 1) / kSector; ++sector)
      if (std::find(sectors.rbegin(), sectors.rend(), sector) == sectors.rend()) sectors.push_back(sector);
    if (Buffer* const buffer = find_buffer(event.address))
      (first.write ? buffer->traffic.written_bytes : buffer->traffic.read_bytes) += event.bytes;
  }
  for (const uint64_t sector : sectors)
    if (Buffer* const buffer = find_buffer(reinterpret_cast<const void*>(sector * kSector)))
      count_sector(*buffer, sector - reinterpret_cast<uint64_t>(buffer->mapping) / kSector, first.write);
}

void count_instruction(const Instruction& instruction) {
  const Event& first = instruction.lanes[__builtin_ctz(instruction.active)];
  first.is_shared ? count_shared(instruction, first) : count_global(instruction, first);
}

// Lanes that have come to the same places in the same order, as they nearly always have.
bool in_step(const std::vector<Event>* lanes, int count) {
  for (int lane = 1; lane < count; ++lane) {
    if (lanes[lane].size() != lanes[0].size()) return false;
    for (size_t i = 0; i < lanes[0].size(); ++i)
      if (!(lanes[lane][i].place == lanes[0][i].place) || lanes[lane][i].is_shared != lanes[0][i].is_shared)
        return false;
  }
  return true;
}

void count_by_occurrence(const std::vector<Event>* lanes, int count) {
  // A cp.async has two events of one line: what it reads and what it writes.
  const auto key_of = [](const Event& event) {
    return Place{event.place.file, event.place.at * 4 + event.write * 2 + event.is_shared};
  };
  std::unordered_map<Place, std::vector<Instruction>, PlaceHash> instructions;
  for (int lane = 0; lane < count; ++lane) {
    std::unordered_map<Place, size_t, PlaceHash> times;
    for (const Event& event : lanes[lane]) {
      const size_t time = times[key_of(event)]++;
      auto& at_place = instructions[key_of(event)];
      if (at_place.size() <= time) at_place.resize(time + 1);
      at_place[time].lanes[lane] = event;
      at_place[time].active |= 1u << lane;
    }
  }
  for (const auto& [place, at_place] : instructions)
    for (const Instruction& instruction : at_place) count_instruction(instruction);
}

}  // namespace

void clear_counters() { totals = {}; }

void begin_counting_block() { ++block_number; }

void count_barrier() { ++totals.barriers; }

void flush_warp(Block& block, int warp) {
  const int count = std::min(kWarp, block.threads - warp * kWarp);
  std::vector<Event>* const lanes = &logs[size_t(warp * kWarp)];
  if (in_step(lanes, count)) {
    Instruction instruction;
    for (size_t i = 0; i < lanes[0].size(); ++i) {
      for (int lane = 0; lane < count; ++lane) instruction.lanes[lane] = lanes[lane][i];
      instruction.active = count == kWarp ? kAllLanes : (1u << count) - 1;
      count_instruction(instruction);
    }
  } else {
    count_by_occurrence(lanes, count);
  }
  for (int lane = 0; lane < count; ++lane) lanes[lane].clear();
}

void flush_block(Block& block) {
  for (int warp = 0; warp < block.num_warps; ++warp) flush_warp(block, warp);
}

void count_access(const Fiber& fiber, const void* address, int bytes, bool write, bool is_shared,
                  Place place) {
  logs[size_t(fiber.thread)].push_back(
      {place, static_cast<const unsigned char*>(address), uint16_t(bytes), write, is_shared});
}

void count_atomic(const void* address, bool is_shared) {
  if (is_shared) {
    ++totals.shared_atomics;
  } else if (Buffer* const buffer = find_buffer(address)) {
    ++buffer->traffic.atomics;
  }
}

// The share of an MMA that can matter: rows of a, columns of b and steps of k that hold anything but zeros.
// Kernels fill what lies past the end of a matrix with zeros, so the others are padding; a row of the
// caller's that is zero counts as padding too.
template <typename T>
void count_mma(const T* a, const T* b, int depth) {
  constexpr int kRows = 16, kColumns = 8;
  int rows = 0, columns = 0, steps = 0;
  for (int row = 0; row < kRows; ++row)
    rows += std::any_of(a + row * depth, a + (row + 1) * depth, [](T x) { return x != 0; });
  for (int column = 0; column < kColumns; ++column) {
    bool any = false;
    for (int k = 0; k < depth; ++k) any |= b[k * kColumns + column] != 0;
    columns += any;
  }
  for (int k = 0; k < depth; ++k) {
    bool any = false;
    for (int row = 0; row < kRows; ++row) any |= a[row * depth + k] != 0;
    steps += any && std::any_of(b + k * kColumns, b + (k + 1) * kColumns, [](T x) { return x != 0; });
  }
  ++totals.mmas;
  totals.useful_mmas += double(rows * columns * steps) / (kRows * kColumns * depth);
}
template void count_mma(const double*, const double*, int);
template void count_mma(const int32_t*, const int32_t*, int);

void retire_counters(const Buffer& buffer) { totals.retired[buffer.name].add(buffer.traffic); }

}  // namespace emulator

extern "C" {

int emulator_shared_places() { return int(emulator::totals.shared.size()); }

// For each place of shared memory accesses: file (null: `at` is a program counter), at, instructions,
// wavefronts, wavefronts that conflicts added.
void emulator_shared_counters(const char** files, uint64_t* numbers) {
  for (const auto& [place, counted] : emulator::totals.shared) {
    *files++ = place.file;
    for (const uint64_t number : {place.at, counted.instructions, counted.wavefronts, counted.extra})
      *numbers++ = number;
  }
}

void emulator_retire_buffers() {
  for (emulator::Buffer* const buffer : emulator::buffers()) {
    emulator::retire_counters(*buffer);
    buffer->traffic = {};
    buffer->sectors.clear();
  }
}

int emulator_traffic_buffers() { return int(emulator::totals.retired.size()); }

// For each name of buffers: the fields of Traffic.
void emulator_traffic(const char** names, uint64_t* numbers) {
  for (const auto& [name, traffic] : emulator::totals.retired) {
    *names++ = name.c_str();
    for (const uint64_t number : traffic.fields()) *numbers++ = number;
  }
}

void emulator_totals(double* numbers) {
  numbers[0] = double(emulator::totals.mmas);
  numbers[1] = emulator::totals.useful_mmas;
  numbers[2] = double(emulator::totals.barriers);
  numbers[3] = double(emulator::totals.shared_atomics);
}

void emulator_clear_counters() { emulator::clear_counters(); }
}
