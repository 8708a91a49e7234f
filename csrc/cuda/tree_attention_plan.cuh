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

__device__ inline int request_of(const int32_t* cu_t, int64_t B, int t) {  // the last b with cu_t[b] <= t
  int low = 0, high = int(B) - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (cu_t[middle] <= t)
      low = middle;
    else
      high = middle - 1;
  }
  return low;
}

// Which slots node t sees. Ancestors come in descending order, so a mask is written word by word.
__device__ inline void describe_node(const Call& call, int t) {
  const TreeAttentionCudaParams& p = call.p;
  const Workspace& w = call.w;
  const int b = request_of(p.cu_t, p.B, t), t0 = p.cu_t[b], L = p.kv_len[b];
  const int32_t* parents = p.parents + t0;
  const int window = p.window ? int(p.window) : 0x7fffffff;
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
      if (parents[node] < 0) break;
    }
    for (; word >= 0; --word, bits = 0) mask[word] = bits;
  }
  const int64_t low = int64_t(L) + depth - window + 1;
  w.ranges[t] = {low > 0 ? int32_t(low) : 0, w.is_chain[b] ? t - t0 + L + 1 + PYSPEC_PLANTED(3) : L};
}

// Tile `index` of request b, before it is split.
__device__ inline RowTile cut_tile(const Call& call, int b, int index) {
  const TreeAttentionCudaParams& p = call.p;
  const Workspace& w = call.w;
  const int R = int(p.H / p.G), t0 = p.cu_t[b], rows = (p.cu_t[b + 1] - t0) * R, L = p.kv_len[b];
  RowTile tile{};
  tile.request = b;
  tile.row0 = index * call.tile_rows;
  tile.rows = min(rows - tile.row0, call.tile_rows);
  tile.is_tree = !w.is_chain[b];
  const int first = tile.is_tree ? 0 : tile.row0 / R, last = (tile.row0 + tile.rows - 1) / R;
  tile.first_slot = w.ranges[t0 + first].low;  // of the root in a tree: nobody's is less
  tile.end_slot = L + last + 1;                // parents come before their children
  tile.span0 = tile.first_slot / kSpan;
  tile.spans = (tile.end_slot + kSpan - 1) / kSpan - tile.span0;
  return tile;
}

__global__ void __launch_bounds__(kPlanThreads)
    plan_step(const Call call, int blocks_at_once, int max_items) {
  PYSPEC_DYNAMIC_SHARED(memory);
  PlanShared& shared = *reinterpret_cast<PlanShared*>(memory);
  const TreeAttentionCudaParams& p = call.p;
  const Workspace& w = call.w;
  const int R = int(p.H / p.G), G = int(p.G);
  for (int b = threadIdx.x; b < p.B; b += kPlanThreads) w.is_chain[b] = 1;
  __syncthreads();
  for (int t = threadIdx.x; t < p.T; t += kPlanThreads) {
    const int b = request_of(p.cu_t, p.B, t);
    if (p.parents[t] != t - p.cu_t[b] - 1) atomicExch(&w.is_chain[b], 0);
  }
  __syncthreads();
  for (int t = threadIdx.x; t < p.T; t += kPlanThreads) describe_node(call, t);
  __syncthreads();

  const auto tiles_of = [&](int64_t b) -> int64_t {
    return (int64_t(p.cu_t[b + 1] - p.cu_t[b]) * R + call.tile_rows - 1) / call.tile_rows;
  };
  const int64_t tiles = scan(p.B, shared, tiles_of, [&](int64_t b, int64_t first) {
    for (int64_t i = 0; i < tiles_of(b); ++i) w.tiles[first + i] = cut_tile(call, int(b), int(i));
  });
  __syncthreads();

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
  const auto stored = [&](int64_t i) -> int64_t {
    const RowTile& tile = w.tiles[i];
    if (tile.spans <= part_spans) return 0;
    return G * (tile.spans - part_spans + 1) * partial_size(tile.rows, p.D);
  };
  scan(tiles, shared, stored, [&](int64_t i, int64_t before) {
    RowTile& tile = w.tiles[i];
    const bool fits = before + stored(i) <= w.partial_floats;
    tile.parts = fits ? int((tile.spans + part_spans - 1) / part_spans) : 1;
    tile.partials = before;
  });
  __syncthreads();
  const int64_t items = scan(
      tiles, shared, [&](int64_t i) -> int64_t { return G * w.tiles[i].parts; },
      [&](int64_t i, int64_t first) {
        RowTile& tile = w.tiles[i];
        tile.first_item = int32_t(first);
        for (int item = 0; item < G * tile.parts; ++item) w.item_tile[first + item] = int32_t(i);
      });
  for (int64_t i = items + threadIdx.x; i < max_items; i += kPlanThreads) w.item_tile[i] = -1;
  for (int64_t i = threadIdx.x; i < tiles * G; i += kPlanThreads) w.arrived[i] = 0;
  if (threadIdx.x == 0) *w.header = {int32_t(tiles), int32_t(items), int32_t(part_spans)};
}

}  // namespace pyspec::attention
