// SPDX-License-Identifier: Apache-2.0
// w8a8_linear by AMX: two tiles of 16 rows times two blocks of 16 channels at once, all of K summed in the
// tiles. Packed blocks and tiled rows are its operands as they lie. Included by w8a8_linear.cpp.
#pragma once

#include "cpu/amx.h"
#include "cpu/int8_rows.h"

namespace pyspec::PYSPEC_ISA {

// Sums of two by two tiles: [row tile][block][row][channel].
struct alignas(64) TileSums {
  int32_t at[2][2][16][16];
};

// Tiles 0 to 3 are sums, 4 and 5 rows, 6 and 7 lines; the second row tile may be missing.
inline TileConfig int8_tiles(int64_t first_rows, int64_t second_rows) {
  TileConfig config;
  const int64_t rows[8] = {first_rows, first_rows, second_rows, second_rows, first_rows, second_rows, 16, 16};
  for (int t = 0; t < 8; ++t) {
    config.rows[t] = uint8_t(rows[t]);
    config.row_bytes[t] = rows[t] ? 64 : 0;
  }
  return config;
}

// Rows from m on, in kTiles tiles, times kBlocks blocks, block_bytes apart. Fetches pass `pass` of `passes`
// of the lines that lie kBlocks blocks further on.
template <int kTiles, int kBlocks>
inline void tile_sums(const Int8Rows& x, int64_t m, const uint8_t* values, int64_t block_bytes, int64_t pass,
                      int64_t passes, TileSums& sums) {
  const int8_t *first = x.at(m, 0), *second = kTiles == 2 ? x.at(m + kRowTile, 0) : nullptr;
  const int64_t first_step = x.tile_rows(m) * kStepK;
  const int64_t second_step = kTiles == 2 ? x.tile_rows(m + kRowTile) * kStepK : 0;
  int64_t next_fetch = pass;
  tile_zero<0>();
  if constexpr (kBlocks == 2) tile_zero<1>();
  if constexpr (kTiles == 2) tile_zero<2>();
  if constexpr (kTiles == 2 && kBlocks == 2) tile_zero<3>();
  for (int64_t s = 0; s < x.steps; ++s, values += 1024) {
    if (s == next_fetch) {
      next_fetch += passes;
      for (int b = kBlocks; b < 2 * kBlocks; ++b)
        for (int i = 0; i < 1024; i += 64) __builtin_prefetch(values + b * block_bytes + i, 0, 2);
    }
    tile_load<6>(values, 64);
    tile_load<4>(first + s * first_step, kStepK);
    tile_dot<0, 4, 6>();
    if constexpr (kBlocks == 2) {
      tile_load<7>(values + block_bytes, 64);
      tile_dot<1, 4, 7>();
    }
    if constexpr (kTiles == 2) {
      tile_load<5>(second + s * second_step, kStepK);
      tile_dot<2, 5, 6>();
      if constexpr (kBlocks == 2) tile_dot<3, 5, 7>();
    }
  }
  tile_store<0>(sums.at[0][0], 64);
  if constexpr (kBlocks == 2) tile_store<1>(sums.at[0][1], 64);
  if constexpr (kTiles == 2) tile_store<2>(sums.at[1][0], 64);
  if constexpr (kTiles == 2 && kBlocks == 2) tile_store<3>(sums.at[1][1], 64);
}

}  // namespace pyspec::PYSPEC_ISA
