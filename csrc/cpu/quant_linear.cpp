// SPDX-License-Identifier: Apache-2.0
// CPU quant_linear. One item is a few blocks of 16 channels for all rows, so that weights come from memory
// once. Groups are folded in order 0, 1, 2 ... for each output, whatever M, the tile and the threads are.
#include "pyspec/quant_linear.h"

#include "cpu/kernel.h"
#include "cpu/quant_dot.h"
#include "cpu/quant_pack.h"
#if defined(PYSPEC_ISA_AMX)
#include "cpu/quant_amx.h"
#endif

namespace pyspec::PYSPEC_ISA {
namespace {

constexpr int64_t kItemBytes = 65536;  // weights of one item: 3 us at memory speed
// Weights are prefetched, over the pages at whose ends the hardware stops: this far ahead if all rows are
// multiplied in one pass over a block, else each pass fetches its share of the next block, so that memory
// works while the rows are multiplied. Outside the caches it takes a quarter off the time of M = 1, half off
// that of 8.
constexpr int64_t kPrefetchBytes = 6144;

// The rows of one tile: R of them lie in the workspace, from m0 on.
struct Tile {
  Activations a;
  int64_t m0, R;
};

// Where a packed block's parts lie.
struct Block {
  const uint8_t *multipliers, *scales, *values;
  int64_t n;
};

inline F32 half16(const uint8_t* p) { return load_f16(reinterpret_cast<const uint16_t*>(p)); }

template <int kRows>
void write_rows(const QuantLinearParams& p, const Block& b, const F32 (&acc)[kRows], int64_t m0) {
  const int channels = int(std::min(kChannels, p.N - b.n));
  const F32 multiplier = load(reinterpret_cast<const float*>(b.multipliers));
  const F32 bias = p.bias ? load_n(p.bias + b.n, channels) : zero();
  for (int m = 0; m < kRows; ++m) {
    float* out = p.out + (m0 + m) * p.out_stride_m + b.n;
    const F32 y = p.bias ? acc[m] * multiplier + bias : acc[m] * multiplier;
    if (channels == kChannels) {
      store(out, y);
    } else {
      store_n(out, y, channels);
    }
  }
}

template <QuantFormat kFormat, int kRows>
void block_rows(const QuantLinearParams& p, const Block& b, const Tile& tile, int64_t m0) {
  constexpr QuantFormatInfo f = info(kFormat);
  constexpr bool kNibbles = f.bits == 4;
  const int64_t G = p.K / kGroup, R = tile.R;
  const int64_t passes = (p.M + kMaxRows - 1) / kMaxRows;
  const int64_t ahead = passes == 1 ? kPrefetchBytes : packed_block_bytes(kFormat, p.K);
  int64_t next_fetch = (tile.m0 + m0) / kMaxRows;  // groups in turn: one of `passes`
  const int8_t* q = tile.a.q + m0 * kGroup;
  const float *scale = tile.a.scale + m0, *sum = tile.a.sum + m0;
  const int32_t* negative = tile.a.negative_sums + m0;
  const uint8_t *scales = b.scales, *values = b.values;
  F32 acc[kRows];
  for (int m = 0; m < kRows; ++m) acc[m] = zero();
  for (int64_t g = 0; g < G; ++g) {
    I32 dot[kRows];
    if (g == next_fetch) {
      next_fetch += passes;
      __builtin_prefetch(scales + ahead);
#pragma GCC unroll 8
      for (int i = 0; i < value_bytes(kFormat); i += 64) __builtin_prefetch(values + ahead + i);
    }
    const F32 d = half16(scales);
    if constexpr (f.half_groups) {
      const F32 d1 = half16(scales + 32);
      group_dots<f.offset_shift, kNibbles, 4>(values, q, negative + R, dot);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) acc[m] = fma(to_f32(dot[m]), d * set1(scale[m]), acc[m]);
      group_dots<f.offset_shift, kNibbles, 4>(values + 256, q + 16, negative + 2 * R, dot);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) acc[m] = fma(to_f32(dot[m]), d1 * set1(scale[m]), acc[m]);
    } else {
      group_dots<f.offset_shift, kNibbles, 8>(values, q, negative, dot);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) acc[m] = fma(to_f32(dot[m]), d * set1(scale[m]), acc[m]);
      if constexpr (f.has_min) {
        const F32 min = half16(scales + 32);
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) acc[m] = fma(set1(sum[m]), min, acc[m]);
      }
    }
    q += R * kGroup;
    scale += R;
    sum += R;
    negative += 3 * R;
    scales += scale_bytes(kFormat);
    values += value_bytes(kFormat);
  }
  write_rows<kRows>(p, b, acc, tile.m0 + m0);
}

// All rows of a tile, kRows or fewer at once.
template <QuantFormat kFormat, int kRows>
void block_tile(const QuantLinearParams& p, const Block& b, const Tile& tile, int64_t m0) {
  for (; tile.R - m0 >= kRows; m0 += kRows) block_rows<kFormat, kRows>(p, b, tile, m0);
  if constexpr (kRows > 1) {
    if (m0 < tile.R) block_tile<kFormat, kRows - 1>(p, b, tile, m0);
  }
}

#if defined(PYSPEC_ISA_AMX)
template <QuantFormat kFormat, int kRows>
void amx_rows(const QuantLinearParams& p, const Block& b, const Tile& tile, const int8_t* rows,
              uint8_t* lines) {
  if constexpr (kRows > kAmxRows) {
    if (tile.R < kRows) return amx_rows<kFormat, kRows - 1>(p, b, tile, rows, lines);
  }
  const int64_t passes = (p.M + kRowTile - 1) / kRowTile, pass = tile.m0 / kRowTile;
  PairProduct<kFormat, kRows> product;
  product.scales = b.scales;
  product.values = b.values;
  product.lines = lines;
  product.rows = rows;
  product.scale = tile.a.scale;
  product.sum = tile.a.sum;
  product.negative = tile.a.negative_sums;
  product.pairs = Pairs<kFormat>::count(p.K);
  product.groups = p.K / kGroup;
  product.R = tile.R;
  product.unpack = pass == 0;
  product.passes = passes;
  product.next_fetch = pass;
  product.ahead = passes == 1 ? kPrefetchBytes : packed_block_bytes(kFormat, p.K);
  F32 acc[kRows];
  product.run(acc);
  write_rows<kRows>(p, b, acc, tile.m0);
}
#endif

template <QuantFormat kFormat>
void run(const QuantLinearParams& p) {
  const Activations a(const_cast<void*>(p.activations), p.M, p.K);
  const int64_t G = p.K / kGroup, block_bytes = packed_block_bytes(p.format, p.K);
  const int64_t blocks = (p.N + kChannels - 1) / kChannels;
  const int64_t per_item = std::clamp(kItemBytes / block_bytes, int64_t(1), std::max<int64_t>(1, blocks / 8));
  const int64_t items = (blocks + per_item - 1) / per_item;
  size_t scratch_bytes = p.packed ? 0 : size_t(block_bytes);
#if defined(PYSPEC_ISA_AMX)
  const bool amx = p.M >= kAmxRows;
  const PairRows<kFormat> pairs(a, amx ? p.M : 0, p.K);
  if (amx) scratch_bytes += size_t(pair_scratch_bytes<kFormat>(p.K));
#endif
  parallel_for(items, [&](int64_t item) {
    uint8_t* scratch = nullptr;
    if (scratch_bytes) scratch = static_cast<uint8_t*>(thread_scratch(scratch_bytes));
#if defined(PYSPEC_ISA_AMX)
    Tiles tiles;
    if (amx) tiles.configure(pair_tiles<kFormat>());
#endif
    for (int64_t i = item * per_item; i < std::min(blocks, (item + 1) * per_item); ++i) {
      const uint8_t* packed = p.weight + i * block_bytes;
      if (!p.packed) {
        pack_block(p.format, p.N, p.K, p.weight, i * kChannels, scratch);
        packed = scratch;
      }
      const Block b{packed, packed + 64, packed + values_offset(p.format, p.K), i * kChannels};
      for (int64_t m0 = 0; m0 < p.M; m0 += kRowTile) {
        Tile tile{a, m0, std::min(kRowTile, p.M - m0)};
        tile.a.q += m0 * p.K;
        tile.a.scale += m0 * G;
        tile.a.sum += m0 * G;
        tile.a.negative_sums += m0 * G * 3;
#if defined(PYSPEC_ISA_AMX)
        if (tile.R >= kAmxRows) {
          uint8_t* lines = scratch + (p.packed ? 0 : block_bytes);
          amx_rows<kFormat, int(kRowTile)>(p, b, tile, pairs.tile(m0 / kRowTile), lines);
          continue;
        }
#endif
        block_tile<kFormat, kMaxRows>(p, b, tile, 0);
      }
    }
  });
}

}  // namespace

void quant_linear(const QuantLinearParams& p) {
  if (p.M == 0) return;
  switch (p.format) {
    case QuantFormat::kQ4_0:
      return run<QuantFormat::kQ4_0>(p);
    case QuantFormat::kQ4_1:
    case QuantFormat::kQ4_K:  // packed alike
      return run<QuantFormat::kQ4_1>(p);
    case QuantFormat::kQ5_0:
      return run<QuantFormat::kQ5_0>(p);
    case QuantFormat::kQ8_0:
      return run<QuantFormat::kQ8_0>(p);
    case QuantFormat::kQ6_K:
      return run<QuantFormat::kQ6_K>(p);
  }
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH_DOTS(quant_linear, QuantLinearParams)
