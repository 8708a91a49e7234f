// SPDX-License-Identifier: Apache-2.0
// The tile operations of AMX that the kernels use: eight tiles of 16 rows of 64 bytes, and int8 products.
// Written as assembly, since compilers' intrinsics do not say that loads and stores touch memory. With
// PYSPEC_AMX_TWIN each is a call of its twin in plain C++, which tests define (tests/amx_emulated): then the
// kernels' own source runs on any machine. Included inside kernel files.
#pragma once

#include "cpu/kernel.h"
#include "cpu/tile_config.h"

namespace pyspec::PYSPEC_ISA {

#if defined(PYSPEC_AMX_TWIN)
inline void tile_configure(const TileConfig& config) { twin_configure(config); }
inline void tile_release() { twin_release(); }
template <int kTile>
inline void tile_load(const void* memory, int64_t stride) {
  twin_load(kTile, memory, stride);
}
template <int kTile>
inline void tile_store(void* memory, int64_t stride) {
  twin_store(kTile, memory, stride);
}
template <int kTile>
inline void tile_zero() {
  twin_zero(kTile);
}
template <int kSums, int kRows, int kLines>
inline void tile_dot() {
  twin_dot(kSums, kRows, kLines);
}
#else
inline void tile_configure(const TileConfig& config) {
  asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
}
inline void tile_release() { asm volatile("tilerelease" ::: "memory"); }
// Rows from memory, `stride` bytes apart.
template <int kTile>
inline void tile_load(const void* memory, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(memory), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void tile_store(void* memory, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(memory), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile) : "memory");
}
// kSums[m][n] += sum over k of kRows[m][k] (int8) * kLines[k / 4][4 n + k % 4] (uint8), in int32 modulo 2^32.
template <int kSums, int kRows, int kLines>
inline void tile_dot() {
  asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kRows), "i"(kLines) : "memory");
}
#endif

// The tiles of one thread for as long as it works on one item.
class Tiles {
 public:
  Tiles() = default;
  ~Tiles() {
    if (loaded_) tile_release();
  }
  Tiles(const Tiles&) = delete;
  void configure(const TileConfig& config) {
    if (loaded_ && std::memcmp(&config_, &config, sizeof config) == 0) return;
    config_ = config;
    loaded_ = true;
    tile_configure(config_);
  }

 private:
  TileConfig config_;
  bool loaded_ = false;
};

}  // namespace pyspec::PYSPEC_ISA
