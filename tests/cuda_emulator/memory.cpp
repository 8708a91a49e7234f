// SPDX-License-Identifier: Apache-2.0
// Guarded allocations of global memory.
#include "memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>

#include "counters.h"
#include "runtime.h"

namespace emulator {

namespace {

constexpr size_t kPage = 4096, kAlign = 16;

std::vector<Buffer*> all;
std::mutex mutex;

size_t round_up(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

}  // namespace

void* allocate_guarded(size_t bytes) {
  const size_t inner = round_up(std::max<size_t>(bytes, 1), kPage), whole = inner + 2 * kGuard;
  void* const mapping = mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) throw std::bad_alloc();
  unsigned char* const begin = static_cast<unsigned char*>(mapping) + kGuard;
  mprotect(begin, inner, PROT_READ | PROT_WRITE);
  std::memset(begin, 0xff, inner);
  auto* const buffer =
      new Buffer{begin + inner - round_up(bytes, kAlign), bytes, mapping, whole, "workspace"};
  const std::lock_guard lock(mutex);
  all.push_back(buffer);
  return buffer->data;
}

void free_guarded(void* data) {
  const std::lock_guard lock(mutex);
  Buffer* const buffer = find_buffer(data);
  if (!buffer) return;
  std::erase(all, buffer);
  if (settings().counting) retire_counters(*buffer);
  munmap(buffer->mapping, buffer->mapping_bytes);
  std::free(buffer->words);
  delete buffer;
}

const std::vector<Buffer*>& buffers() { return all; }

Buffer* find_buffer(const void* address) {
  const auto* const p = static_cast<const unsigned char*>(address);
  for (Buffer* const buffer : all)
    if (size_t(p - static_cast<unsigned char*>(buffer->mapping)) < buffer->mapping_bytes) return buffer;
  return nullptr;
}

std::string describe_address(const void* address) {
  const Buffer* const buffer = find_buffer(address);
  if (!buffer) return "memory that no tensor owns";
  const auto offset = static_cast<const unsigned char*>(address) - buffer->data;
  if (offset < 0) return format("%td bytes before the beginning of %s", -offset, buffer->name.c_str());
  if (size_t(offset) < buffer->bytes) return format("byte %td of %s", offset, buffer->name.c_str());
  return format("%td bytes past the end of %s (%zu bytes)", offset - std::ptrdiff_t(buffer->bytes),
                buffer->name.c_str(), buffer->bytes);
}

}  // namespace emulator
