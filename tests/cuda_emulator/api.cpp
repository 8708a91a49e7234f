// SPDX-License-Identifier: Apache-2.0
// The emulator's C interface, which tests/cuda_emulator/emulator.py calls, and the list of findings.
#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <mutex>
#include <vector>

#include "block_order.h"
#include "memory.h"
#include "runtime.h"
#include "shadow.h"

namespace emulator {

namespace {

struct Finding {
  const char* kind;
  Place place, other;
  std::string text, kernel;
};
std::vector<Finding> findings;
struct Launch {
  const void* function;
  uint64_t blocks, threads, smem_bytes;
};
std::vector<Launch> launches;
std::string kernel_name;
std::mutex mutex;

}  // namespace

void report(const char* kind, Place place, const std::string& text, Place other) {
  const std::lock_guard lock(mutex);
  for (const Finding& known : findings)
    if (known.kind == std::string_view(kind) && known.place == place) return;
  findings.push_back({kind, place, other, text, kernel_name});
}

void record_launch(const void* function, dim3 grid, dim3 block, size_t smem_bytes) {
  launches.push_back({function, uint64_t(grid.x) * grid.y * grid.z, block.x * block.y * block.z, smem_bytes});
}

std::string format(const char* pattern, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, pattern);
  std::vsnprintf(text, sizeof text, pattern, arguments);
  va_end(arguments);
  return text;
}

std::string thread_name(const Fiber& fiber) {
  const uint3 &t = fiber.thread_index, &b = fiber.block_index;
  return format("thread (%u, %u, %u) of block (%u, %u, %u)", t.x, t.y, t.z, b.x, b.y, b.z);
}

void begin_launch(const char* kernel) {
  kernel_name = kernel;
  begin_launch_order();
}

}  // namespace emulator

extern "C" {

void emulator_configure(int order, int copies, uint64_t seed, int os_threads, int smem_limit,
                        double time_limit, bool checked, bool counting, bool recording, int bug) {
  emulator::settings() = {emulator::Order(order),
                          emulator::Copies(copies),
                          seed,
                          os_threads,
                          smem_limit,
                          time_limit,
                          checked,
                          counting,
                          recording,
                          bug};
  emulator::launches.clear();
}

int emulator_findings() { return int(emulator::findings.size()); }

// Of finding i: kind, text, kernel, and twice file and line, or a null file and a program counter: its place
// and that of the access it collides with, 0 if there is none.
void emulator_finding(int i, const char** texts, uint64_t* at) {
  const emulator::Finding& finding = emulator::findings[size_t(i)];
  texts[0] = finding.kind;
  texts[1] = finding.text.c_str();
  texts[2] = finding.kernel.c_str();
  texts[3] = finding.place.file;
  texts[4] = finding.other.file;
  at[0] = finding.place.at;
  at[1] = finding.other.at;
}

void emulator_clear_findings() { emulator::findings.clear(); }

// `data` may lie up to 15 bytes behind the beginning of the allocation, for its remainder of 16: nobody owns
// those.
void emulator_name_buffer(const void* data, const char* name) {
  emulator::Buffer* const buffer = emulator::find_buffer(data);
  if (!buffer) return;
  buffer->name = name;
  const auto unowned = size_t(static_cast<const unsigned char*>(data) - buffer->data);
  if (unowned >= 16) return;
  buffer->data += unowned;
  buffer->bytes -= unowned;
}

int emulator_launches() { return int(emulator::launches.size()); }

// Of launch i since the last call of emulator_configure: the kernel's address, blocks, threads, shared bytes.
void emulator_launch(int i, uint64_t* out) {
  const emulator::Launch& launch = emulator::launches[size_t(i)];
  out[0] = reinterpret_cast<uint64_t>(launch.function);
  out[1] = launch.blocks;
  out[2] = launch.threads;
  out[3] = launch.smem_bytes;
}

// Its pages cannot be written from here on.
void emulator_protect(const void* data) {
  emulator::Buffer* const buffer = emulator::find_buffer(data);
  if (!buffer) return;  // an empty tensor
  auto* const begin = static_cast<unsigned char*>(buffer->mapping) + emulator::kGuard;
  mprotect(begin, buffer->mapping_bytes - 2 * emulator::kGuard, PROT_READ);
}
}
