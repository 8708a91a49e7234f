// SPDX-License-Identifier: Apache-2.0
// CPU w8a8_linear: exact int32 sums, packed or by rows. One item is some channels for a chunk of rows.
#include "pyspec/w8a8_linear.h"

#include "cpu/int8_dot.h"
#include "cpu/int8_rows.h"
#include "cpu/kernel.h"
#if defined(PYSPEC_ISA_AMX)
#include "cpu/w8a8_amx.h"
#endif

namespace pyspec::PYSPEC_ISA {
namespace {

constexpr int64_t kItemBytes = 65536;     // weights of one item: 3 us at memory speed
constexpr int64_t kChunkBytes = 262144;   // of x: the rows of an item stay in L2 while weights go by
constexpr int64_t kPartBytes = 65536;     // of weights, for rows that take several passes
constexpr int64_t kPrefetchBytes = 4096;  // ahead of one pass, over the ends of pages, where hardware stops

void write(const W8A8LinearParams& p, int64_t m, int64_t n, I32 sums) {
  const int count = int(std::min<int64_t>(16, p.N - n));
  const F32 y = to_f32(sums) * load_n(p.w_scale + n, count) * set1(p.x_scale[m]);
  if (p.out_dtype == DType::kF32) return store_n(static_cast<float*>(p.out) + m * p.N + n, y, count);
  uint16_t half[16];
  p.out_dtype == DType::kBF16 ? store_bf16(half, y) : store_f16(half, y);
  std::memcpy(static_cast<uint16_t*>(p.out) + m * p.N + n, half, size_t(count) * 2);
}

// A part of a packed product: kBlocks blocks of 16 channels from channel n on, steps [first, last) of 64 k.
// Passes over it, each of some rows, share out the prefetch of `next`: the part that follows.
struct Part {
  const uint8_t *values, *next;
  int64_t block_bytes, n, first, last;
  int64_t pass, passes;
  uint8_t* kept;       // sums of each pass, kKeptBytes apart, between the parts of one panel
  const uint8_t* end;  // of the item: behind it comes the one that this thread is likely to claim next,
  int64_t jump;        // so many bytes further on

  const uint8_t* ahead(const uint8_t* p) const { return p < end ? p : p + jump; }
};
constexpr int64_t kKeptBytes = sizeof(Int8Sums<kDotRows, kDotBlocks>);

// One pass needs the weights at once; for later ones the second cache does.
inline void prefetch_step(const Part& part, const uint8_t* values) {
  if (part.passes == 1) {
#pragma GCC unroll 16
    for (int i = 0; i < 1024; i += 64) __builtin_prefetch(values + i);
  } else {
#pragma GCC unroll 16
    for (int i = 0; i < 1024; i += 64) __builtin_prefetch(values + i, 0, 2);
  }
}

template <int kRows, int kBlocks>
void part_rows(const W8A8LinearParams& p, const Int8Rows& x, const Part& part, int64_t m) {
  using Sums = Int8Sums<kRows, kBlocks>;
  auto* kept = reinterpret_cast<Sums*>(part.kept + part.pass * kKeptBytes);
  const int64_t x_step = x.tile_rows(m) * kStepK;
  const int8_t* rows = x.at(m, part.first);
  int64_t next_fetch = part.pass;
  Sums sums;
  if (part.first > 0) sums = *kept;
  for (int64_t s = 0; s < part.last - part.first; ++s, rows += x_step) {
    if (s == next_fetch) {
      next_fetch += part.passes;
      for (int b = 0; b < kBlocks; ++b)
        prefetch_step(part, part.ahead(part.next + b * part.block_bytes + s * 1024));
    }
    sums.add(rows, part.values + s * 1024, part.block_bytes);
  }
  if (part.last < x.steps) {
    *kept = sums;
    return;
  }
  for (int r = 0; r < kRows; ++r)
    for (int b = 0; b < kBlocks; ++b) write(p, m + r, part.n + 16 * b, sums.total(r, b, x.offsets[m + r]));
}

// Rows [m, end) of one tile of x, kRows or fewer at once.
template <int kRows, int kBlocks>
void part_tile(const W8A8LinearParams& p, const Int8Rows& x, Part& part, int64_t m, int64_t end) {
  for (; end - m >= kRows; m += kRows, ++part.pass) part_rows<kRows, kBlocks>(p, x, part, m);
  if constexpr (kRows > 1) {
    if (m < end) part_tile<kRows - 1, kBlocks>(p, x, part, m, end);
  }
}

// Rows [m0, m1) of kBlocks blocks. One pass reads the weights straight through; more take parts that stay in
// the second cache, so that they come from memory once and while others are multiplied.
template <int kBlocks>
void panel_product(const W8A8LinearParams& p, const Int8Rows& x, Part part, int64_t m0, int64_t m1) {
  const uint8_t* values = part.values;
  const int64_t steps = part.passes == 1 ? x.steps : kPartBytes / (1024 * kBlocks);
  for (part.first = 0; part.first == 0 || part.first < x.steps; part.first = part.last) {
    part.last = std::min(x.steps, part.first + steps);
    part.values = values + part.first * 1024;
    part.next = part.passes == 1      ? part.values + kPrefetchBytes
                : part.last < x.steps ? values + part.last * 1024
                                      : values + kBlocks * part.block_bytes;
    part.pass = 0;
    for (int64_t m = m0; m < m1; m += kRowTile)
      part_tile<kDotRows, kBlocks>(p, x, part, m, std::min(m1, m + kRowTile));
    if (x.steps == 0) return;
  }
}

#if defined(PYSPEC_ISA_AMX)
// Rows [m0, m1) of kBlocks blocks.
template <int kBlocks>
void amx_product(const W8A8LinearParams& p, const Int8Rows& x, const Part& part, int64_t m0, int64_t m1,
                 Tiles& tiles) {
  TileSums sums;
  const int64_t passes = (m1 - m0 + 2 * kRowTile - 1) / (2 * kRowTile);
  for (int64_t m = m0; m < m1; m += 2 * kRowTile) {
    const int64_t rows = std::min(2 * kRowTile, m1 - m), first = std::min(rows, kRowTile),
                  pass = (m - m0) / (2 * kRowTile);
    tiles.configure(int8_tiles(first, rows - first));
    rows > kRowTile ? tile_sums<2, kBlocks>(x, m, part.values, part.block_bytes, pass, passes, sums)
                    : tile_sums<1, kBlocks>(x, m, part.values, part.block_bytes, pass, passes, sums);
    for (int64_t r = 0; r < rows; ++r)
      for (int b = 0; b < kBlocks; ++b)
        write(p, m + r, part.n + 16 * b,
              iload(sums.at[r / kRowTile][b][r % kRowTile]) - iset1(x.offsets[m + r]));
  }
}
#endif

void packed_product(const W8A8LinearParams& p, const Int8Rows& x) {
  const int64_t block_bytes = packed_int8_block_bytes(p.K), blocks = (p.N + 15) / 16;
#if defined(PYSPEC_ISA_AMX)
  constexpr int kBlocks = 2;  // lines of two are held in tiles
  constexpr int64_t kFewRows = 4;
#else
  constexpr int kBlocks = kDotBlocks;
  constexpr int64_t kFewRows = 16;  // two blocks are multiplied faster, but come from memory slower
#endif
  const bool few = p.M <= kFewRows;  // these take one stream of memory at a time
  // As many items for every thread, of nearly equal size.
  const int64_t wide = few ? 1 : kBlocks, panels = (blocks + wide - 1) / wide, threads = num_threads();
  const int64_t wanted = std::max<int64_t>(8, blocks * block_bytes / kItemBytes);
  const int64_t items = std::min(panels, (wanted + threads - 1) / threads * threads);
  const auto first_block = [&](int64_t item) { return std::min(blocks, item * panels / items * wide); };
  const int64_t chunk = std::max<int64_t>(64, kChunkBytes / std::max<int64_t>(1, p.K) / 64 * 64);
  const int64_t chunks = (p.M + chunk - 1) / chunk;
  parallel_for(items * chunks, [&](int64_t i) {
    const int64_t item = i % items, m0 = i / items * chunk, m1 = std::min(p.M, m0 + chunk);
    const int64_t end = first_block(item + 1);
    Part part{};
    part.block_bytes = block_bytes;
    part.passes = (m1 - m0 + kDotRows - 1) / kDotRows;
    part.kept = static_cast<uint8_t*>(thread_scratch(size_t(part.passes * kKeptBytes)));
#if defined(PYSPEC_ISA_AMX)
    Tiles tiles;
#endif
    part.end = reinterpret_cast<const uint8_t*>(p.weight) + end * block_bytes;
    part.jump = item + threads < items ? (first_block(item + threads) - end) * block_bytes : 0;
    for (int64_t b = first_block(item); b < end; b += wide) {
      part.values = reinterpret_cast<const uint8_t*>(p.weight) + b * block_bytes;
      part.n = b * 16;
      const bool whole = wide > 1 && b + wide <= end;
#if defined(PYSPEC_ISA_AMX)
      if (!few) {
        whole ? amx_product<kBlocks>(p, x, part, m0, m1, tiles) : amx_product<1>(p, x, part, m0, m1, tiles);
        continue;
      }
#endif
      whole ? panel_product<kDotBlocks>(p, x, part, m0, m1) : panel_product<1>(p, x, part, m0, m1);
    }
  });
}

template <int kRows>
void lane_product(const W8A8LinearParams& p, const Int8Rows& x, int64_t n, int64_t m, int64_t end) {
  const int64_t count = std::min<int64_t>(16, p.N - n);
  for (; end - m >= kRows; m += kRows) {
    int32_t sums[kRows][16] = {};
    const int64_t x_step = x.tile_rows(m) * kStepK;
    for (int64_t c = 0; c < count; c += kLaneChannels) {
      const int8_t* w = p.weight + (n + c) * p.weight_stride_n;
      auto* to = reinterpret_cast<int32_t (*)[16]>(&sums[0][c]);
      if (count - c >= kLaneChannels) {
        lane_dots<kRows, kLaneChannels>(x.at(m, 0), x_step, x.offsets + m, w, p.weight_stride_n, p.K, to);
      } else {
        for (int64_t i = c; i < count; ++i, w += p.weight_stride_n)
          lane_dots<kRows, 1>(x.at(m, 0), x_step, x.offsets + m, w, p.weight_stride_n, p.K,
                              reinterpret_cast<int32_t (*)[16]>(&sums[0][i]));
      }
    }
    for (int r = 0; r < kRows; ++r) write(p, m + r, n, iload(sums[r]));
  }
  if constexpr (kRows > 1) {
    if (m < end) lane_product<kRows - 1>(p, x, n, m, end);
  }
}

}  // namespace

void w8a8_linear(const W8A8LinearParams& p) {
  if (p.M == 0) return;
  const Int8Rows x(p.x, p.x_stride_m, p.M, p.K);
  if (p.packed) return packed_product(p, x);
  constexpr int64_t kItemRows = 64;
  const int64_t blocks = (p.N + 15) / 16;
  parallel_for(blocks * ((p.M + kItemRows - 1) / kItemRows), [&](int64_t item) {
    const int64_t n = item % blocks * 16, first = item / blocks * kItemRows;
    for (int64_t m = first; m < std::min(p.M, first + kItemRows); m += kRowTile)
      lane_product<kLaneRows>(p, x, n, m, std::min(p.M, m + kRowTile));
  });
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH_DOTS(w8a8_linear, W8A8LinearParams)
