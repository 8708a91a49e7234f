// SPDX-License-Identifier: Apache-2.0
// tree_attention on GPUs, the host's part: how positions are cut, how a call is cut into blocks, and where
// everything lies in the workspace and in shared memory. Pure functions of sizes, dtypes and the device.
#pragma once

#include <algorithm>
#include <type_traits>

#include "pyspec/tree_attention_cuda.h"

namespace pyspec::attention {

// Absolute slots are cut into spans, spans into tiles. The cut is the same for every batch and machine, and
// with it the order of every sum. Blocks share a row tile by spans; 512 slots of D = 64 are 128 KiB.
constexpr int kSpan = 512;
constexpr int kTile = 16;
constexpr int kMaxTree = 1024;                           // nodes of a request that is no chain
constexpr int kMaxPageSlots = 256, kMaxPages = 1 << 23;  // page << 8 | slot is 31 bits
// f32 of stored spans, and of the bases of groups: what does not fit here is not split or shared.
constexpr int64_t kMaxPartialBytes = int64_t(64) << 20;
constexpr int kEnoughRows = 128;     // products of so many rows take as long as L2 takes for their KV
constexpr int kOneFragRows = 64;     // up to here warps have 16 rows: more warps hide more latency
constexpr int kBlockReserve = 1024;  // bytes of shared memory that the system takes of a block

// Slots that cp.async brings together, and how many such stages there are, by head dim: 3 of 8 KiB of K and
// V, 12 at D = 96 and 16 at D = 256. A warp has 16 rows times max_frags at most: 64 accumulators a thread,
// 128 at D = 256.
struct Shape {
  int stage_slots, stages, max_frags, max_warps;
};
constexpr Shape shape_of(int64_t D) { return {D <= 96 ? 32 : 16, 3, D == 64 ? 2 : 1, D == 256 ? 8 : 16}; }

enum class TileRole : int32_t {
  kOwn,     // rows of one request over all that they see
  kShared,  // rows of a group of requests over the spans that begin all of them: makes bases
  kRest,    // rows of one request of a group over their other spans: begins with bases
};

// Rows [row0, row0 + rows) of the nodes from t0 on: row r is node r / R with query head r % R of whichever KV
// head.
struct RowTile {
  int32_t request, t0, row0, rows;  // by the page table of `request`
  int32_t first_slot, end_slot;     // what any of its rows sees
  int32_t span0, spans;
  int32_t parts;       // blocks that share it
  int32_t arrivals;    // parts, and row tiles that make its bases
  int32_t first_item;  // of the parts of all KV heads, one KV head after the other
  int32_t is_tree;     // rows have ancestor masks
  TileRole role;
  int64_t partials;  // offset in floats of its stored spans, unless a block computes all of it
};

// Requests [first, end) whose page tables begin alike, for this many whole spans; 0: a request by itself.
struct Group {
  int32_t first, end, spans;
};

// Which slots a node sees: [low, high), and in a tree also those of its mask, whose bit j is slot kv_len + j.
struct NodeRange {
  int32_t low, high;
};

// The workspace: written by the plan, read by every run. Partials are written and read by one run.
struct Workspace {
  int32_t* part_spans;  // [1]: of all parts but the last one of a row tile
  int32_t* is_chain;    // [B]
  int32_t* common;      // [B]: spans that begin with the same pages as those of the request before
  Group* groups;        // [B]
  int32_t* own_tile;    // [B]: the first row tile that is no shared one
  NodeRange* ranges;    // [T]
  uint32_t* masks;      // [T, mask_words]
  RowTile* tiles;       // [max_tiles]
  int32_t* item_tile;   // [grid]: the row tile of a block, or -1
  int32_t* arrived;     // [max_tiles, G] parts that are done; the last one sets it back to 0
  float* bases;         // of rows of groups: accumulators [T, H, D] of the shared spans
  float* base_sums;     // and (max, sum) [T, H, 2]
  float* partials;      // stored spans
  int64_t partial_floats;
  int mask_words;
  int64_t bytes;
};

// Whether requests may share spans at all.
inline bool can_share(const TreeAttentionCudaParams& p) {
  return p.B > 1 && !p.window && p.W * p.S > kSpan && p.T * p.H * (p.D + 2) * 4 <= kMaxPartialBytes;
}

inline Workspace place_workspace(const TreeAttentionCudaParams& p, const TreeAttentionConfig& config) {
  Workspace w{};
  unsigned char* base = static_cast<unsigned char*>(p.workspace);
  const auto take = [&](auto*& pointer, int64_t count) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(base + w.bytes);
    w.bytes += (count * int64_t(sizeof(*pointer)) + 31) / 32 * 32;
  };
  w.mask_words = int((std::min<int64_t>(p.T, kMaxTree) + 31) / 32);
  const int64_t spans = (p.W * p.S + kSpan - 1) / kSpan, every_row = p.T * p.H * (p.D + 8);
  w.partial_floats = spans > 1 ? std::min(spans * every_row, kMaxPartialBytes / 4) : 0;
  const int64_t base_rows = can_share(p) ? p.T * p.H : 0;
  take(w.part_spans, 1);
  take(w.is_chain, p.B);
  take(w.common, p.B);
  take(w.groups, p.B);
  take(w.own_tile, p.B);
  take(w.ranges, p.T);
  take(w.masks, p.T * w.mask_words);
  take(w.tiles, config.max_tiles);
  take(w.item_tile, config.grid);
  take(w.arrived, config.max_tiles * p.G);
  take(w.bases, base_rows * p.D);
  take(w.base_sums, base_rows * 2);
  take(w.partials, w.partial_floats);
  return w;
}

// Where a block's shared memory lies: offsets in bytes, each a multiple of 16.
struct SharedLayout {
  int stages;      // after the queries [tile_rows, D], twice with `split`: stages, K then V [stage_slots, D]
  int wide;        // quantised pages: the stage at hand as 16 bits, K then V
  int scales;      // quantised pages: of all stages, K then V [stage_slots] f32
  int total;       // accumulators of the spans so far [tile_rows, D], as the threads of each warp hold them
  int total_sums;  // their (max, sum) [tile_rows]
  int ranges;      // NodeRange [tile_rows]
  int warps;       // WarpView [threads / 32]
  int item;        // Item, of kItemBytes
  int bytes;
};

// The same for all rows of a warp: tiles in [seen0, seen1) have something for one of them, slots in [open0,
// open1) are seen by all.
struct WarpView {
  int32_t seen0, seen1, open0, open1;
};

constexpr int kItemBytes = 128;  // what a block computes, as the kernel keeps it

// What the kernels are called with.
struct Call {
  TreeAttentionCudaParams p;
  Workspace w;
  SharedLayout shared;
  int tile_rows;
  bool f16;        // the type the tensor cores compute in: that of the pages, bf16 for f8 and i8
  bool split;      // queries and weights are sums of two 16-bit parts, unless queries have that type
  bool quantised;  // pages are f8 or i8
  bool shares;     // requests may share spans
};

inline Call make_call(const TreeAttentionCudaParams& p) {
  Call call{};
  call.p = p;
  call.f16 = p.kv_dtype == DType::kF16;
  call.split = p.q_dtype != (call.f16 ? DType::kF16 : DType::kBF16);
  call.quantised = p.kv_dtype == DType::kF8 || p.kv_dtype == DType::kI8;
  call.shares = can_share(p);
  return call;
}

inline SharedLayout place_shared(const Call& call, int tile_rows) {
  const Shape shape = shape_of(call.p.D);
  const int D = int(call.p.D), stage_values = 2 * shape.stage_slots * D;
  const bool one_span = call.p.W * call.p.S <= kSpan;  // no context needs a total
  SharedLayout s{};
  s.stages = tile_rows * D * 2 * (call.split ? 2 : 1);
  s.wide = s.stages + shape.stages * stage_values * (call.quantised ? 1 : 2);
  s.scales = s.wide + (call.quantised ? stage_values * 2 : 0);
  s.total = s.scales + (call.quantised ? shape.stages * 2 * shape.stage_slots * 4 : 0);
  s.total_sums = s.total + (one_span ? 0 : tile_rows * D * 4);
  s.ranges = s.total_sums + tile_rows * 8;
  s.warps = s.ranges + tile_rows * int(sizeof(NodeRange));
  s.item = s.warps + tile_rows / 16 * int(sizeof(WarpView));
  s.bytes = s.item + kItemBytes;
  return s;
}

// As few row tiles a request as shared memory allows, of equal sizes, but enough of them to fill the machine
// as long as they are not small: KV is read again from L2 then, which does not take longer than the products.
inline TreeAttentionConfig pick_config(const TreeAttentionCudaParams& p) {
  const Call call = make_call(p);
  const Shape shape = shape_of(p.D);
  const int64_t nodes = p.node_count ? p.node_count : (p.T + p.B - 1) / p.B, R = p.H / p.G;
  // A tile of more rows than a request has is for the rows of a group; up to 64 cost a block little.
  const int64_t rows = std::max(nodes * R, can_share(p) ? std::min<int64_t>(p.T * R, kOneFragRows) : 0);
  TreeAttentionConfig config{};
  config.frags = rows > kOneFragRows ? shape.max_frags : 1;
  const int step = 16 * config.frags;
  int capacity = step * shape.max_warps;
  while (capacity > step && place_shared(call, capacity).bytes > p.block_shared_bytes) capacity -= step;
  const auto over = [](int64_t a, int64_t b) { return (a + b - 1) / b; };
  const int64_t to_fill = std::min(over(p.num_sms, p.B * p.G), over(rows, kEnoughRows));
  const int64_t tiles = std::max(over(rows, capacity), to_fill);
  config.tile_rows = int(over(over(rows, tiles), step) * step);
  config.warps = config.tile_rows / step;
  config.shared_bytes = place_shared(call, config.tile_rows).bytes;
  // The kernels have up to 128 registers a thread, 256 at D = 256: an SM's 64 Ki hold 16 or 8 warps.
  const int by_registers = (p.D == 256 ? 8 : 16) / config.warps;
  const int by_shared = p.sm_shared_bytes / (config.shared_bytes + kBlockReserve);
  config.blocks_at_once = p.num_sms * std::max(1, std::min(by_registers, by_shared));
  config.max_tiles = int((p.B + p.T * R / config.tile_rows) * (can_share(p) ? 2 : 1));
  config.grid = int(std::max<int64_t>(config.blocks_at_once, config.max_tiles * p.G));
  return config;
}

inline int64_t workspace_bytes(const TreeAttentionCudaParams& p) {
  return p.T == 0 ? 0 : place_workspace(p, pick_config(p)).bytes;
}

}  // namespace pyspec::attention
