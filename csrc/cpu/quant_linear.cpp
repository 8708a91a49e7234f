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
constexpr int64_t kWideRows = 5;       // fewer rows take one stream of memory at a time
// Weights are prefetched, over the pages at whose ends the hardware stops: this far ahead if all rows are
// multiplied in one pass over a block, the more the longer that takes; else each pass fetches its share of
// the next blocks, so that memory works while the rows are multiplied.
constexpr int64_t kPrefetchBytes = 6144, kFarBytes = 12288;

// The rows of one tile: R of them lie in the workspace, from m0 on.
struct Tile {
  Activations a;
  int64_t m0, R;
};

// Where the parts of a packed block lie. Behind the item's last block comes the item that this thread is
// likely to claim next, `jump` bytes further on.
struct Block {
  const uint8_t *multipliers, *scales, *values;
  int64_t n;
  const uint8_t* end;  // of the item
  int64_t jump;

  const uint8_t* ahead(const uint8_t* p, int64_t bytes) const {
    p += bytes;
    return p < end ? p : p + jump;
  }
};

// Logits of many rows: lines that are far apart and more than the second cache holds. Stored in the usual way
// each would first be read from memory.
inline bool streams(const QuantLinearParams& p) {
  constexpr int64_t kFarApart = 16384, kMany = 262144;  // floats
  return p.N >= kFarApart && p.M * p.N >= kMany &&
         (uintptr_t(p.out) | uintptr_t(p.out_stride_m * 4)) % 64 == 0;
}

inline F32 half16(const uint8_t* p) { return load_f16(reinterpret_cast<const uint16_t*>(p)); }

template <int kRows>
void write_rows(const QuantLinearParams& p, const uint8_t* multipliers, int64_t n, const F32 (&acc)[kRows],
                int64_t m0) {
  const int channels = int(std::min(kChannels, p.N - n));
  const F32 multiplier = load(reinterpret_cast<const float*>(multipliers));
  const F32 bias = p.bias ? load_n(p.bias + n, channels) : zero();
  const bool stream = streams(p);
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
    float* out = p.out + (m0 + m) * p.out_stride_m + n;
    const F32 y = p.bias ? acc[m] * multiplier + bias : acc[m] * multiplier;
    if (channels == kChannels) {
      stream ? store_past_caches(out, y) : store(out, y);
    } else {
      store_n(out, y, channels);
    }
  }
}

// Pass `pass` of `passes` over kBlocks neighbouring blocks: kRows rows of a tile.
template <QuantFormat kFormat, int kRows, int kBlocks>
void block_rows(const QuantLinearParams& p, const Block& block, const Tile& tile, int64_t m0, int64_t pass,
                int64_t passes) {
  constexpr QuantFormatInfo f = info(kFormat);
  constexpr int kHalves = f.half_groups ? 2 : 1;  // sums of a group
  const int64_t G = p.K / kGroup, R = tile.R, stride = packed_block_bytes(kFormat, p.K);
  const int64_t ahead = passes > 1 ? kBlocks * stride : kRows > 2 ? kFarBytes : kPrefetchBytes;
  const int8_t* q = tile.a.q + m0 * kGroup;
  const float *scale = tile.a.scale + m0, *sum = tile.a.sum + m0;
  const int32_t* negative = tile.a.negative_sums + m0;
  const uint8_t *scales = block.scales, *values = block.values;
  F32 acc[kBlocks][kRows];
  for (auto& rows : acc)
    for (F32& a : rows) a = zero();
  for (int64_t g = 0; g < G; ++g) {
    if (g == pass) {
      pass += passes;
      for (int b = 0; b < kBlocks; ++b) {
        __builtin_prefetch(block.ahead(scales + b * stride, ahead));
        const uint8_t* next = block.ahead(values + b * stride, ahead);
#pragma GCC unroll 8
        for (int i = 0; i < value_bytes(kFormat); i += 64) __builtin_prefetch(next + i);
      }
    }
#pragma GCC unroll 2
    for (int half = 0; half < kHalves; ++half) {
      I32 dot[kBlocks][kRows];
      group_dots<f.offset_shift, f.bits == 4, 8 / kHalves>(
          values + half * 256, stride, q + half * 16, negative + (f.half_groups ? 1 + half : 0) * R, dot);
#pragma GCC unroll 2
      for (int b = 0; b < kBlocks; ++b) {
        const F32 d = half16(scales + b * stride + half * 32);
        const F32 min = f.has_min ? half16(scales + b * stride + 32) : zero();
#pragma GCC unroll 8
        for (int m = 0; m < kRows; ++m) {
          acc[b][m] = fma(to_f32(dot[b][m]), d * set1(scale[m]), acc[b][m]);
          if constexpr (f.has_min) acc[b][m] = fma(set1(sum[m]), min, acc[b][m]);
        }
      }
    }
    q += R * kGroup;
    scale += R;
    sum += R;
    negative += 3 * R;
    scales += scale_bytes(kFormat);
    values += value_bytes(kFormat);
  }
#pragma GCC unroll 2
  for (int b = 0; b < kBlocks; ++b)
    write_rows<kRows>(p, block.multipliers + b * stride, block.n + b * kChannels, acc[b], tile.m0 + m0);
}

template <QuantFormat kFormat, int kRows, int kBlocks>
void some_rows(const QuantLinearParams& p, const Block& b, const Tile& tile, int64_t m0, int64_t rows,
               int64_t pass, int64_t passes) {
  if constexpr (kRows > 1) {
    if (rows < kRows) return some_rows<kFormat, kRows - 1, kBlocks>(p, b, tile, m0, rows, pass, passes);
  }
  block_rows<kFormat, kRows, kBlocks>(p, b, tile, m0, pass, passes);
}

constexpr int64_t tile_passes(int64_t rows) { return (rows + kMaxRows - 1) / kMaxRows; }

// All rows of a tile, in passes of about as many rows.
template <QuantFormat kFormat, int kBlocks>
void block_tile(const QuantLinearParams& p, const Block& b, const Tile& tile) {
  const int64_t full = tile_passes(kRowTile), count = tile_passes(tile.R);
  const int64_t first = tile.m0 / kRowTile * full;
  const int64_t passes = p.M / kRowTile * full + tile_passes(p.M % kRowTile);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t m0 = tile.R * i / count, m1 = tile.R * (i + 1) / count;
    some_rows<kFormat, kMaxRows, kBlocks>(p, b, tile, m0, m1 - m0, first + i, passes);
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
  write_rows<kRows>(p, b.multipliers, b.n, acc, tile.m0);
}
#endif

template <QuantFormat kFormat>
void run(const QuantLinearParams& p) {
  const Activations a(const_cast<void*>(p.activations), p.M, p.K);
  const int64_t G = p.K / kGroup, block_bytes = packed_block_bytes(p.format, p.K);
  const int64_t blocks = (p.N + kChannels - 1) / kChannels;
  size_t scratch_bytes = p.packed ? 0 : size_t(block_bytes);
#if defined(PYSPEC_ISA_AMX)
  const bool amx = p.M >= kAmxRows;
  const PairRows<kFormat> pairs(a, amx ? p.M : 0, p.K);
  if (amx) scratch_bytes += size_t(pair_scratch_bytes<kFormat>(p.K));
  const int64_t wide = 1;
#else
  const int64_t wide = p.packed && p.M >= kWideRows ? kMaxBlocks : 1;
#endif
  // As many items for every thread, of nearly equal size.
  const int64_t panels = (blocks + wide - 1) / wide, threads = num_threads();
  const int64_t wanted = std::max<int64_t>(8, blocks * block_bytes / kItemBytes);
  const int64_t items = std::min(panels, (wanted + threads - 1) / threads * threads);
  const auto first_block = [&](int64_t item) { return item * panels / items * wide; };
  parallel_for(items, [&](int64_t item) {
    uint8_t* scratch = nullptr;
    if (scratch_bytes) scratch = static_cast<uint8_t*>(thread_scratch(scratch_bytes));
#if defined(PYSPEC_ISA_AMX)
    Tiles tiles;
    if (amx) tiles.configure(pair_tiles<kFormat>());
#endif
    const int64_t end = std::min(blocks, first_block(item + 1));
    const int64_t jump = item + threads < items ? (first_block(item + threads) - end) * block_bytes : 0;
    for (int64_t i = first_block(item), count; i < end; i += count) {
      count = std::min(wide, end - i);
      const uint8_t* packed = p.weight + i * block_bytes;
      if (!p.packed) {
        pack_block(p.format, p.N, p.K, p.weight, i * kChannels, scratch);
        packed = scratch;
      }
      const Block b{packed,
                    packed + 64,
                    packed + values_offset(p.format, p.K),
                    i * kChannels,
                    p.weight + end * block_bytes,
                    jump};
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
        count == 1 ? block_tile<kFormat, 1>(p, b, tile) : block_tile<kFormat, kMaxBlocks>(p, b, tile);
      }
    }
    if (streams(p)) stored_past_caches();
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
