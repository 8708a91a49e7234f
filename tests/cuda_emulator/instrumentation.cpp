// SPDX-License-Identifier: Apache-2.0
// The run-time functions that g++ calls before every load and store of a kernel compiled with
// -fsanitize=thread (the checked build), and those of -fsanitize=alignment. They are the compilers' ABI,
// answered by our checker.
#include <cstdint>
#include <cstring>

#include "runtime.h"
#include "shadow.h"

using emulator::check_access;
using emulator::Place;

#define PYSPEC_HERE Place::counter(__builtin_return_address(0))
#define PYSPEC_ACCESS(bytes)                                                                          \
  void __tsan_read##bytes(void* p) { check_access(p, bytes, false, PYSPEC_HERE); }                    \
  void __tsan_write##bytes(void* p) { check_access(p, bytes, true, PYSPEC_HERE); }                    \
  void __tsan_unaligned_read##bytes(void* p) { check_access(p, bytes, false, PYSPEC_HERE); }          \
  void __tsan_unaligned_write##bytes(void* p) { check_access(p, bytes, true, PYSPEC_HERE); }          \
  void __tsan_volatile_read##bytes(void* p) { check_access(p, bytes, false, PYSPEC_HERE); }           \
  void __tsan_volatile_write##bytes(void* p) { check_access(p, bytes, true, PYSPEC_HERE); }           \
  void __tsan_unaligned_volatile_read##bytes(void* p) { check_access(p, bytes, false, PYSPEC_HERE); } \
  void __tsan_unaligned_volatile_write##bytes(void* p) { check_access(p, bytes, true, PYSPEC_HERE); }

extern "C" {
void __tsan_init() {}
PYSPEC_ACCESS(1)
PYSPEC_ACCESS(2)
PYSPEC_ACCESS(4)
PYSPEC_ACCESS(8)
PYSPEC_ACCESS(16)
void __tsan_read_range(void* p, unsigned long bytes) { check_access(p, int(bytes), false, PYSPEC_HERE); }
void __tsan_write_range(void* p, unsigned long bytes) { check_access(p, int(bytes), true, PYSPEC_HERE); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
void* __tsan_memcpy(void* to, const void* from, unsigned long bytes) {
  check_access(from, int(bytes), false, PYSPEC_HERE);
  check_access(to, int(bytes), true, PYSPEC_HERE);
  return std::memcpy(to, from, bytes);
}
void* __tsan_memset(void* to, int value, unsigned long bytes) {
  check_access(to, int(bytes), true, PYSPEC_HERE);
  return std::memset(to, value, bytes);
}

struct SourceLocation {
  const char* file;
  uint32_t line, column;
};
struct TypeMismatch {
  SourceLocation location;
  const void* type;
  uint8_t log_alignment, kind;
};
void __ubsan_handle_type_mismatch_v1(const TypeMismatch* data, uintptr_t address) {
  if (!emulator::this_block || !emulator::this_block->current) return;
  const std::string who = emulator::thread_name(*emulator::this_block->current);
  emulator::report(
      "alignment", Place::line({data->location.file, int(data->location.line)}),
      emulator::format("%s accesses %d bytes at an address that is no multiple of it (remainder %d)",
                       who.c_str(), 1 << data->log_alignment,
                       int(address & ((1u << data->log_alignment) - 1))));
}
}
