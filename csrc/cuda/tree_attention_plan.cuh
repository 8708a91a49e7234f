// SPDX-License-Identifier: Apache-2.0
// The plan of CUDA tree_attention: who computes what in one step, made on the device by one block from
// kv_len, cu_t and parents, for all layers of the step. Row tiles are cut from the nodes of each request; if
// they are too few to fill the machine they are split by spans of the context, as evenly as whole spans
// allow.
#pragma once

#include "cuda/tree_attention_tile.cuh"

namespace pyspec::attention {

constexpr int kPlanThreads = 512;

struct PlanShared {
  int64_t partial[kPlanThreads / kWarp];
};

__device__ inline int64_t warp_sum_before(int64_t value, int lane, int64_t& total) {
  int64_t sum = value;
  for (int step = 1; step < kWarp; step *= 2) {
    const int64_t other = __shfl_up_sync(kFullWarp, sum, step);
    if (lane >= step) sum += other;
  }
  total = __shfl_sync(kFullWarp, sum, kWarp - 1);
  return sum - value;
}

// The sum of the values of the threads before this one, and of all.
__device__ inline int64_t sum_before(int64_t value, PlanShared& shared, int64_t& total) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  int64_t warp_total;
  int64_t before = warp_sum_before(value, lane, warp_total);
  if (lane == 0) shared.partial[warp] = warp_total;
  __syncthreads();
  total = 0;
  for (int other = 0; other < kPlanThreads / kWarp; ++other) {
    if (other == warp) before += total;
    total += shared.partial[other];
  }
  __syncthreads();  // the next sum writes there again
  return before;
}

// fn(i, sum of values before i) for i < count, in parallel; returns the sum of all values.
template <typename Value, typename Fn>
__device__ inline int64_t scan(int64_t count, PlanShared& shared, Value value, Fn fn) {
  int64_t carry = 0;
  for (int64_t base = 0; base < count; base += kPlanThreads) {
    const int64_t i = base + threadIdx.x;
    int64_t total;
    const int64_t before = sum_before(i < count ? value(i) : 0, shared, total);
    if (i < count) fn(i, carry + before);
    carry += total;
  }
  return carry;
}

// Which slots node t sees. Ancestors come in descending order, so a mask is written word by word.
__device__ inline void describe_node(const Call& call, int t) {
  const TreeAttentionCudaParams& p = call.p;
  const Workspace& w = call.w;
  const int b = request_of(p.cu_t, p.B, t), t0 = p.cu_t[b], L = p.kv_len[b];
  const int32_t* parents = p.parents + t0;
  const int window = p.window && p.window < 0x7fffffff ? int(p.window) : 0x7fffffff;
  int depth = t - t0;
  if (!w.is_chain[b]) {
    uint32_t* mask = w.masks + int64_t(t) * w.mask_words;
    int word = w.mask_words;
    uint32_t bits = 0;
    depth = 0;
    for (int node = t - t0;; node = parents[node], ++depth) {
      while (node / 32 < word) {
        if (word < w.mask_words) mask[word] = bits;
        bits = 0;
        --word;
      }
      if (depth - PYSPEC_PLANTED(9) < window) bits |= 1u << node % 32;
      if (parents[node] < 0 || parents[node] >= node) break;  // the second only where nobody has checked
    }
    for (; word >= 0; --word, bits = 0) mask[word] = bits;
  }
  const int64_t low = int64_t(L) + depth - window + 1;
  w.ranges[t] = {low > 0 ? int32_t(low) : 0, w.is_chain[b] ? t - t0 + L + 1 + PYSPEC_PLANTED(3) : L};
}

// How many whole spans of request b begin with the same pages as those of the request before it; by a warp.
__device__ inline int common_spans(const Call& call, int64_t b, int lane) {
  const TreeAttentionCudaParams& p = call.p;
  if (p.cu_t[b + 1] == p.cu_t[b] || p.cu_t[b] == p.cu_t[b - 1]) return 0;  // their tables may hold anything
  const int columns = int(min(p.kv_len[b], p.kv_len[b - 1]) / p.S);
  const int32_t *table = p.page_table + b * p.W, *before = table - p.W;
  for (int column = lane;; column += kWarp) {
    const uint32_t differ = __ballot_sync(kFullWarp, column >= columns || table[column] != before[column]);
    if (differ) return int((column - lane + __ffs(differ) - 1) * p.S / kSpan) + PYSPEC_PLANTED(12);
  }
}

// Requests from b on that share spans with each other.
__device__ inline void form_group(const Call& call, int b) {
  const Workspace& w = call.w;
  if (w.common[b]) return;  // another one is the first
  Group group{b, b + 1, 0x7fffffff};
  for (; group.end < call.p.B && w.common[group.end]; ++group.end)
    group.spans = min(group.spans, w.common[group.end]);
  if (group.end == b + 1) group.spans = 0;
  for (int member = b; member < group.end; ++member) w.groups[member] = group;
}

__device__ inline int row_tiles(const Call& call, int begin,
                                int end) {  // of the nodes of requests [begin, end)
  const int rows = (call.p.cu_t[end] - call.p.cu_t[begin]) * int(call.p.H / call.p.G);
  return (rows + call.tile_rows - 1) / call.tile_rows;
}
__device__ inline int shared_tiles(const Call& call, int b) {  // that come before the first tile of request b
  const Group& group = call.w.groups[b];
  return group.spans && group.first == b ? row_tiles(call, b, group.end) : 0;
}

// Tile `index` of requests [begin, end), before it is split.
__device__ inline RowTile cut_tile(const Call& call, int begin, int end, int index) {
  RowTile tile{};
  tile.request = begin;
  tile.t0 = call.p.cu_t[begin];
  tile.row0 = index * call.tile_rows;
  tile.rows = min((call.p.cu_t[end] - tile.t0) * int(call.p.H / call.p.G) - tile.row0, call.tile_rows);
  return tile;
}

__device__ inline void cut_request(const Call& call, int b, int first_tile) {
  const Workspace& w = call.w;
  const Group& group = w.groups[b];
  const int R = int(call.p.H / call.p.G), shared = shared_tiles(call, b), own = row_tiles(call, b, b + 1);
  for (int i = 0; i < shared; ++i) {
    RowTile tile = cut_tile(call, b, group.end, i);
    tile.end_slot = group.spans * kSpan;
    tile.spans = group.spans;
    tile.role = TileRole::kShared;
    w.tiles[first_tile + i] = tile;
  }
  w.own_tile[b] = first_tile + shared;
  for (int i = 0; i < own; ++i) {
    RowTile tile = cut_tile(call, b, b + 1, i);
    tile.is_tree = !w.is_chain[b];
    const int first = tile.is_tree ? 0 : tile.row0 / R, last = (tile.row0 + tile.rows - 1) / R;
    // Nobody in a tree sees less than its root; parents come before their children.
    tile.first_slot = max(w.ranges[tile.t0 + first].low, group.spans * kSpan);
    tile.end_slot = call.p.kv_len[b] + last + 1;
    tile.span0 = tile.first_slot / kSpan;
    tile.spans = (tile.end_slot + kSpan - 1) / kSpan - tile.span0;
    if (group.spans) {
      tile.role = TileRole::kRest;
      const int row = (tile.t0 - call.p.cu_t[group.first]) * R + tile.row0;  // in the group
      if (!PYSPEC_PLANTED(11))
        tile.arrivals = (row + tile.rows - 1) / call.tile_rows - row / call.tile_rows + 1;
    }
    w.tiles[first_tile + shared + i] = tile;
  }
}

__global__ void __launch_bounds__(kPlanThreads)
    plan_step(const Call call, int blocks_at_once, int max_items) {
  PYSPEC_DYNAMIC_SHARED(memory);
  PlanShared& shared = *reinterpret_cast<PlanShared*>(memory);
  const TreeAttentionCudaParams& p = call.p;
  const Workspace& w = call.w;
  const int G = int(p.G);
  const auto each = [](int64_t count, auto fn) {
    for (int64_t i = threadIdx.x; i < count; i += kPlanThreads) fn(int(i));
    __syncthreads();
  };
  each(p.B, [&](int b) { w.is_chain[b] = 1, w.common[b] = 0; });
  each(p.T, [&](int t) {
    const int b = request_of(p.cu_t, p.B, t);
    if (p.parents[t] != t - p.cu_t[b] - 1) atomicExch(&w.is_chain[b], 0);
  });
  each(p.T, [&](int t) { describe_node(call, t); });
  if (call.shares) {
    for (int64_t b = 1 + threadIdx.x / kWarp; b < p.B; b += kPlanThreads / kWarp) {
      const int common = common_spans(call, b, threadIdx.x % kWarp);
      if (threadIdx.x % kWarp == 0) w.common[b] = common;
    }
    __syncthreads();
  }

  int64_t tiles, rest_floats;
  const auto rest_size = [&](int64_t i) -> int64_t {
    const RowTile& tile = w.tiles[i];
    return tile.role == TileRole::kRest ? G * tile.spans * partial_size(tile.rows, p.D) : 0;
  };
  for (;;) {
    each(p.B, [&](int b) { form_group(call, b); });
    tiles = scan(
        p.B, shared,
        [&](int64_t b) -> int64_t {
          return shared_tiles(call, int(b)) + row_tiles(call, int(b), int(b) + 1);
        },
        [&](int64_t b, int64_t first) { cut_request(call, int(b), int(first)); });
    __syncthreads();
    rest_floats =
        scan(tiles, shared, rest_size, [&](int64_t i, int64_t before) { w.tiles[i].partials = before; });
    if (rest_floats <= w.partial_floats) break;
    each(p.B, [&](int b) { w.common[b] = 0; });  // what groups store does not fit: there are none
  }

  // The fewest spans a part may have such that all parts run at once; if tiles alone fill the machine, all.
  const auto parts_at = [&](int64_t part_spans) {
    return scan(
        tiles, shared, [&](int64_t i) { return G * ((w.tiles[i].spans + part_spans - 1) / part_spans); },
        [](int64_t, int64_t) {});
  };
  int64_t part_spans = (p.W * p.S + kSpan - 1) / kSpan;
  if (tiles * G < blocks_at_once)
    for (int64_t low = 1; low < part_spans;) {
      const int64_t middle = (low + part_spans) / 2;
      if (parts_at(middle) <= blocks_at_once)
        part_spans = middle;
      else
        low = middle + 1;
    }

  // Partials: the first part of a tile stores one, its total so far, the others one a span.
  const auto size = [&](int64_t i) -> int64_t {
    const RowTile& tile = w.tiles[i];
    if (tile.role == TileRole::kRest || tile.spans <= part_spans) return 0;
    return G * (tile.spans - part_spans + 1) * partial_size(tile.rows, p.D);
  };
  scan(tiles, shared, size, [&](int64_t i, int64_t before) {
    RowTile& tile = w.tiles[i];
    const bool is_rest = tile.role == TileRole::kRest;
    const bool fits = is_rest || rest_floats + before + size(i) <= w.partial_floats;
    tile.parts = fits ? int((tile.spans + part_spans - 1) / part_spans) : 1;
    tile.arrivals += tile.parts;
    if (!is_rest) tile.partials = rest_floats + before;
  });
  __syncthreads();
  const int64_t items = scan(
      tiles, shared, [&](int64_t i) -> int64_t { return G * w.tiles[i].parts; },
      [&](int64_t i, int64_t first) {
        RowTile& tile = w.tiles[i];
        tile.first_item = int32_t(first);
        for (int item = 0; item < G * tile.parts; ++item) w.item_tile[first + item] = int32_t(i);
      });
  each(max_items - items, [&](int i) { w.item_tile[items + i] = -1; });
  each(tiles * G, [&](int i) { w.arrived[i] = 0; });
  if (threadIdx.x == 0) *w.part_spans = int32_t(part_spans);
}

}  // namespace pyspec::attention
