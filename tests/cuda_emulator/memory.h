// SPDX-License-Identifier: Apache-2.0
// Global memory of the emulator: every allocation ends, to 16 bytes, at pages that cannot be touched, and
// begins after such pages.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace emulator {

struct Cell;

constexpr size_t kGuard = 64 * 4096;  // bytes before and behind a buffer

struct Buffer {
  unsigned char* data;
  size_t bytes;
  void* mapping;
  size_t mapping_bytes;
  std::string name;
  Cell* words = nullptr;  // shadow of the checked build, see shadow.h
};

void* allocate_guarded(size_t bytes);  // filled with 0xff: NaN, or -1
void free_guarded(void* data);
const std::vector<Buffer*>& buffers();
Buffer* find_buffer(const void* address);           // whose mapping, guards included, holds it, or null
std::string describe_address(const void* address);  // "12 bytes past the end of x", or ""

}  // namespace emulator
