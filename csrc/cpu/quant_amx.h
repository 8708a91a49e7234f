// SPDX-License-Identifier: Apache-2.0
// quant_linear by AMX: the products of two groups of 32 k (q6_k: of the two halves of a group) by one tile
// operation, then the fold of every row's group as in quant_linear.cpp, with the same bits. Included by it.
//
// A holds the rows of the first group in its upper 8 rows and left half, those of the second in its lower 8
// rows and right half, and zeros: so one product with the lines of both groups gives the sums of each. Tile
// operations take their time in the matrix unit, so the steps are a pipeline: step s starts the product of
// pair s, stores that of pair s - 4, and folds that of pair s - 6. That also keeps the unit awake.
#pragma once

#include "cpu/amx.h"

namespace pyspec::PYSPEC_ISA {

constexpr int64_t kAmxRows = 5;  // fewer rows of a tile are multiplied faster by the vector units

template <QuantFormat kFormat>
struct Pairs {
  static constexpr bool kHalves = info(kFormat).half_groups, kNibbles = info(kFormat).bits == 4;
  static constexpr int64_t kUnit = kHalves ? 16 : 32;    // k of one sum
  static constexpr int64_t kRowBytes = 2 * kUnit;        // of A
  static constexpr int64_t kTileBytes = 16 * kRowBytes;  // of A
  static constexpr int64_t kLineBytes = kUnit / 2 * 64;  // of B: as many lines as a row has words
  static int64_t count(int64_t K) { return kHalves ? K / kGroup : (K / kGroup + 1) / 2; }
};

// The A tiles of all rows: [M / 8][pairs][16][kRowBytes].
template <QuantFormat kFormat>
struct PairRows {
  using P = Pairs<kFormat>;
  int8_t* data;
  int64_t pairs;

  PairRows(const Activations& a, int64_t M, int64_t K) : pairs(P::count(K)) {
    const int64_t tiles = (M + kRowTile - 1) / kRowTile, G = K / kGroup;
    data = static_cast<int8_t*>(thread_scratch(size_t(tiles * pairs * P::kTileBytes), 1));
    parallel_for(tiles, [&](int64_t t) {
      const int64_t R = std::min(kRowTile, M - t * kRowTile);
      const int8_t* q = a.q + t * kRowTile * K;
      std::memset(tile(t), 0, size_t(pairs * P::kTileBytes));
      for (int64_t g = 0; g < G; ++g)
        for (int64_t m = 0; m < R; ++m, q += kGroup)
          for (int64_t k = 0; k < kGroup; k += P::kUnit) {
            const int64_t unit = g * kGroup / P::kUnit + k / P::kUnit, second = unit % 2;
            std::memcpy(
                tile(t) + unit / 2 * P::kTileBytes + (second * 8 + m) * P::kRowBytes + second * P::kUnit,
                q + k, P::kUnit);
          }
    });
  }
  int8_t* tile(int64_t t) const { return data + t * pairs * P::kTileBytes; }
};

// Bytes of scratch of a block: the lines of its pairs where they do not lie in memory as B is read.
template <QuantFormat kFormat>
int64_t pair_scratch_bytes(int64_t K) {
  return (Pairs<kFormat>::kNibbles ? Pairs<kFormat>::count(K) : 1) * Pairs<kFormat>::kLineBytes;
}

// One tile of 5 to 8 rows times one block.
template <QuantFormat kFormat, int kRows>
struct PairProduct {
  using P = Pairs<kFormat>;
  static constexpr QuantFormatInfo kInfo = info(kFormat);

  const uint8_t *scales, *values;  // of the block
  uint8_t* lines;            // scratch: every pair's nibbles apart, or the last pair if half of it is missing
  const int8_t* rows;        // A tiles
  const float *scale, *sum;  // of the tile's rows
  const int32_t* negative;
  int64_t pairs, groups, R;
  bool unpack;  // nibbles are still to be taken apart: the first rows of a block do it
  int64_t passes, next_fetch, ahead;
  alignas(64) int32_t sums[4][16][16];

  void unpack_pair(int64_t pair) {
    const I32 low = iset1(0x0f0f0f0f);
    uint8_t* to = lines + pair * P::kLineBytes;
    for (int64_t g = 2 * pair; g < std::min(groups, 2 * pair + 2); ++g) {
      const uint8_t* from = values + g * value_bytes(kFormat);
#pragma GCC unroll 4
      for (int r = 0; r < 4; ++r) {
        const I32 line = iload(reinterpret_cast<const int32_t*>(from + r * 64));
        istore(reinterpret_cast<int32_t*>(to + r * 64), line & low);
        istore(reinterpret_cast<int32_t*>(to + 256 + r * 64), shift_right<4>(line) & low);
      }
      to += 512;
    }
  }

  const uint8_t* lines_of(int64_t pair) const {
    if constexpr (P::kNibbles) return lines + pair * P::kLineBytes;
    if (!P::kHalves && 2 * pair + 1 == groups) return lines;
    return values + pair * P::kLineBytes;
  }

  void fetch(int64_t pair) {
    if (pair != next_fetch) return;
    next_fetch += passes;
    for (int64_t g = P::kHalves ? pair : 2 * pair, end = P::kHalves ? g + 1 : g + 2; g < end; ++g) {
      __builtin_prefetch(scales + g * scale_bytes(kFormat) + ahead);
      for (int64_t i = 0; i < value_bytes(kFormat); i += 64)
        __builtin_prefetch(values + g * value_bytes(kFormat) + ahead + i);
    }
  }

  // The operations of quant_linear.cpp's block_rows, in its order. Sums stay in registers only if all is
  // inlined.
  [[gnu::always_inline]] void fold_unit(F32 (&acc)[kRows], const int32_t (*dots)[16], int64_t g, int half) {
    const uint8_t* s = scales + g * scale_bytes(kFormat);
    const F32 d = load_f16(reinterpret_cast<const uint16_t*>(s + half * 32));
    const F32 min = kInfo.has_min ? load_f16(reinterpret_cast<const uint16_t*>(s + 32)) : zero();
    const int32_t* minus = negative + (3 * g + (P::kHalves ? 1 + half : 0)) * R;
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      I32 dot = iload(dots[m]);
      if constexpr (kInfo.offset_shift >= 0)
        dot = dot + shift_left<std::max(0, kInfo.offset_shift)>(iset1(minus[m]));
      acc[m] = fma(to_f32(dot), d * set1(scale[g * R + m]), acc[m]);
      if constexpr (kInfo.has_min) acc[m] = fma(set1(sum[g * R + m]), min, acc[m]);
    }
  }
  [[gnu::always_inline]] void fold_pair(F32 (&acc)[kRows], int64_t pair) {
    const int32_t (*dots)[16] = sums[pair % 4];
    if constexpr (P::kHalves) {
      fold_unit(acc, dots, pair, 0);
      fold_unit(acc, dots + 8, pair, 1);
    } else {
      fold_unit(acc, dots, 2 * pair, 0);
      if (2 * pair + 1 < groups) fold_unit(acc, dots + 8, 2 * pair + 1, 0);
    }
  }

  template <int kTile>
  [[gnu::always_inline]] void step(F32 (&acc)[kRows], int64_t s) {
    if (P::kNibbles && unpack && s + 1 < pairs) unpack_pair(s + 1);
    if (s >= 4 && s < pairs + 4) tile_store<kTile>(sums[kTile], 64);
    if (s < pairs) {
      fetch(s);
      tile_load<6 + kTile % 2>(lines_of(s), 64);
      tile_load<4 + kTile % 2>(rows + s * P::kTileBytes, P::kRowBytes);
      tile_zero<kTile>();
      tile_dot<kTile, 4 + kTile % 2, 6 + kTile % 2>();
    }
    if (s >= 6 && s < pairs + 6) fold_pair(acc, s - 6);
  }

  void run(F32 (&out)[kRows]) {
    F32 acc[kRows];
    for (int m = 0; m < kRows; ++m) acc[m] = zero();
    if (!P::kHalves && groups % 2 == 1) {
      uint8_t* last = lines + (P::kNibbles ? (pairs - 1) * P::kLineBytes : 0);
      if (!P::kNibbles) std::memcpy(last, values + (groups - 1) * value_bytes(kFormat), 512);
      std::memset(last + 512, 0, 512);
    }
    if (P::kNibbles && unpack) unpack_pair(0);
    for (int64_t s = 0; s < pairs + 6; s += 4) {
      step<0>(acc, s);
      step<1>(acc, s + 1);
      step<2>(acc, s + 2);
      step<3>(acc, s + 3);
    }
    for (int m = 0; m < kRows; ++m) out[m] = acc[m];
  }
};

template <QuantFormat kFormat>
TileConfig pair_tiles() {
  using P = Pairs<kFormat>;
  TileConfig config;
  for (int t = 0; t < 8; ++t) {
    config.rows[t] = t < 6 ? 16 : uint8_t(P::kRowBytes / 4);
    config.row_bytes[t] = t == 4 || t == 5 ? uint16_t(P::kRowBytes) : 64;
  }
  return config;
}

}  // namespace pyspec::PYSPEC_ISA
