// SPDX-License-Identifier: Apache-2.0
// Global memory of the emulator: every allocation ends, to 16 bytes, at pages that cannot be touched, and
// begins after such pages.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace emulator {

struct Cell;

constexpr size_t kGuard = 64 * 4096;  // bytes before and behind a buffer

// What went between a buffer and the multiprocessors, see counters.h. Sectors have 32 bytes and are counted
// once a warp instruction; `per_block` once a block (caches of the multiprocessor that lose nothing),
// `unique` once at all (DRAM, if L2 loses nothing).
struct Traffic {
  uint64_t read_bytes = 0, read_sectors = 0, read_sectors_per_block = 0, read_sectors_unique = 0;
  uint64_t written_bytes = 0, written_sectors = 0, written_sectors_unique = 0, atomics = 0;
  static constexpr int kFields = 8;

  std::array<uint64_t, kFields> fields() const {
    return {read_bytes,    read_sectors,    read_sectors_per_block, read_sectors_unique,
            written_bytes, written_sectors, written_sectors_unique, atomics};
  }
  void add(const Traffic& other) {
    read_bytes += other.read_bytes;
    read_sectors += other.read_sectors;
    read_sectors_per_block += other.read_sectors_per_block;
    read_sectors_unique += other.read_sectors_unique;
    written_bytes += other.written_bytes;
    written_sectors += other.written_sectors;
    written_sectors_unique += other.written_sectors_unique;
    atomics += other.atomics;
  }
};

struct Buffer {
  unsigned char* data;
  size_t bytes;
  void* mapping;
  size_t mapping_bytes;
  std::string name;
  Cell* words = nullptr;  // shadow of the checked build, see shadow.h
  Traffic traffic = {};
  std::vector<uint32_t> sectors = {};  // who has touched them, see counters.cpp
};

void* allocate_guarded(size_t bytes);  // filled with 0xff: NaN, or -1
void free_guarded(void* data);
const std::vector<Buffer*>& buffers();
Buffer* find_buffer(const void* address);           // whose mapping, guards included, holds it, or null
std::string describe_address(const void* address);  // "12 bytes past the end of x", or ""

}  // namespace emulator
