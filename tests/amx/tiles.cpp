// SPDX-License-Identifier: Apache-2.0
// AMX's tiles in plain C++, exact, with the faults that the processor raises, and calls of the AMX kernels
// for Python (test_amx.py). Architecture: Intel 64 manual, volume 2, LDTILECFG, TILELOADD, TILESTORED,
// TDPBSUD.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "cpu/thread_pool.h"
#include "cpu/tile_config.h"
#include "pyspec/quant_linear.h"
#include "pyspec/quantize_activations.h"
#include "pyspec/w8a8_linear.h"

namespace pyspec {
namespace amx {
void quant_linear(const QuantLinearParams& p);
void w8a8_linear(const W8A8LinearParams& p);
}  // namespace amx
namespace PYSPEC_AMX_LANES {
void quantize_activations(const QuantizeActivationsParams& p);
}

namespace {

struct State {
  TileConfig config{0};
  bool configured = false;
  uint8_t data[8][16][64];
};
thread_local State state;

std::mutex mutex;
std::string first_fault;
int64_t dots = 0;
int planted =
    0;  // 1: rows unsigned; 2: a store leaves the last row; 3: loads keep what tiles had; 4: lines signed

void fault(const std::string& text) {
  const std::lock_guard<std::mutex> lock(mutex);
  if (first_fault.empty()) first_fault = text;
}

bool usable(const char* what, int tile) {
  const bool known = state.configured && tile >= 0 && tile < 8 && state.config.rows[tile] > 0;
  if (!known) fault(std::string(what) + ": tile " + std::to_string(tile) + " is not configured");
  return known;
}

// Memory whose end is the end of what may be read.
class Guarded {
 public:
  Guarded(const void* from, size_t bytes) {
    const size_t page = size_t(sysconf(_SC_PAGESIZE));
    size_ = (bytes + page - 1) / page * page + page;
    base_ = static_cast<uint8_t*>(
        mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    mprotect(base_ + size_ - page, page, PROT_NONE);
    data = base_ + size_ - page - bytes;
    std::memcpy(data, from, bytes);
  }
  ~Guarded() { munmap(base_, size_); }
  Guarded(const Guarded&) = delete;
  uint8_t* data;

 private:
  uint8_t* base_;
  size_t size_;
};

const char* result() {
  static thread_local std::string text;
  const std::lock_guard<std::mutex> lock(mutex);
  text = first_fault;
  return text.c_str();
}

}  // namespace

void twin_configure(const TileConfig& config) {
  for (int t = 0; t < 16; ++t) {
    const bool none = config.rows[t] == 0 && config.row_bytes[t] == 0;
    const bool fits = t < 8 && config.rows[t] >= 1 && config.rows[t] <= 16 && config.row_bytes[t] >= 1 &&
                      config.row_bytes[t] <= 64;
    if (!none && !fits) fault("ldtilecfg: tile " + std::to_string(t) + " has an impossible size");
  }
  for (const uint8_t byte : config.reserved)
    if (byte) fault("ldtilecfg: reserved bytes must be 0");
  if (config.palette != 1 || config.start_row != 0) fault("ldtilecfg: palette must be 1 and start_row 0");
  state.config = config;
  state.configured = true;
  std::memset(state.data, 0, sizeof state.data);
}

void twin_release() { state.configured = false; }

void twin_load(int tile, const void* memory, int64_t stride) {
  if (!usable("tileloadd", tile)) return;
  const auto* from = static_cast<const uint8_t*>(memory);
  if (planted != 3) std::memset(state.data[tile], 0, sizeof state.data[tile]);
  for (int r = 0; r < state.config.rows[tile]; ++r)
    for (int b = 0; b < state.config.row_bytes[tile]; ++b)
      state.data[tile][r][b] = uint8_t(from[r * stride + b] | (planted == 3 ? state.data[tile][r][b] : 0));
}

void twin_store(int tile, void* memory, int64_t stride) {
  if (!usable("tilestored", tile)) return;
  for (int r = 0; r < state.config.rows[tile] - (planted == 2); ++r)
    std::memcpy(static_cast<uint8_t*>(memory) + r * stride, state.data[tile][r],
                state.config.row_bytes[tile]);
}

void twin_zero(int tile) {
  if (usable("tilezero", tile)) std::memset(state.data[tile], 0, sizeof state.data[tile]);
}

void twin_dot(int c, int a, int b) {
  if (!usable("tdpbsud", c) || !usable("tdpbsud", a) || !usable("tdpbsud", b)) return;
  const TileConfig& f = state.config;
  if (c == a || c == b || a == b) return fault("tdpbsud: tiles must differ");
  if (f.rows[c] != f.rows[a] || f.row_bytes[c] != f.row_bytes[b] || f.row_bytes[a] != 4 * f.rows[b] ||
      f.row_bytes[b] % 4 != 0)
    return fault("tdpbsud: sizes of tiles do not fit");
  for (int m = 0; m < f.rows[a]; ++m)
    for (int n = 0; n < f.row_bytes[c] / 4; ++n) {
      uint32_t sum;
      std::memcpy(&sum, &state.data[c][m][4 * n], 4);
      for (int k = 0; k < f.row_bytes[a]; ++k) {
        const int row = planted == 1 ? state.data[a][m][k] : int8_t(state.data[a][m][k]);
        const uint8_t byte = state.data[b][k / 4][4 * n + k % 4];
        sum += uint32_t(row * (planted == 4 ? int8_t(byte) : byte));
      }
      std::memcpy(&state.data[c][m][4 * n], &sum, 4);
    }
  __atomic_fetch_add(&dots, 1, __ATOMIC_RELAXED);
}

extern "C" {

#define EXPORT __attribute__((visibility("default")))

EXPORT void plant(int bug) { planted = bug; }
EXPORT int64_t tile_dots() { return dots; }
EXPORT const char* check_reason() { return amx_reason().c_str(); }
EXPORT void use_threads(int threads) { set_num_threads(threads); }

// Both give the first fault, or nothing.
EXPORT const char* quant_linear(const float* x, const uint8_t* weight, const float* bias, float* out,
                                int format, bool packed, int64_t M, int64_t N, int64_t K) {
  const FlushDenormals flush;
  const auto f = QuantFormat(format);
  const Guarded w(weight, size_t(packed ? packed_bytes(f, N, K) : N * gguf_row_bytes(f, K)));
  std::vector<uint8_t> memory(size_t(activation_bytes(M, K) + 64));
  auto* activations = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
  PYSPEC_AMX_LANES::quantize_activations({x, activations, M, K, K});
  amx::quant_linear({activations, w.data, bias, out, f, packed, M, N, K, N});
  return result();
}

EXPORT const char* w8a8_linear(const int8_t* x, const uint8_t* packed, const float* x_scale,
                               const float* w_scale, float* out, int64_t M, int64_t N, int64_t K) {
  const FlushDenormals flush;
  const Guarded w(packed, size_t((N + 15) / 16 * packed_int8_block_bytes(K)));
  const Guarded rows(x, size_t(M * K));
  amx::w8a8_linear({reinterpret_cast<const int8_t*>(rows.data), reinterpret_cast<const int8_t*>(w.data),
                    x_scale, w_scale, out, DType::kF32, M, N, K, K, 0, true});
  return result();
}

}  // extern "C"

}  // namespace pyspec
