// SPDX-License-Identifier: Apache-2.0
// The sizes of AMX's tiles, and the twins of its operations (cpu/amx.h).
#pragma once

#include <cstdint>

namespace pyspec {

// Rows and bytes of a row of every tile, as LDTILECFG reads them.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

#if defined(PYSPEC_AMX_TWIN)
void twin_configure(const TileConfig& config);
void twin_release();
void twin_load(int tile, const void* memory, int64_t stride);
void twin_store(int tile, void* memory, int64_t stride);
void twin_zero(int tile);
void twin_dot(int sums, int signed_rows, int unsigned_lines);
#endif

}  // namespace pyspec
