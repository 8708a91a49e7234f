// SPDX-License-Identifier: Apache-2.0
// The plan of tree_attention: row tiles, and the items that threads claim.
#include <algorithm>

#include "pyspec/tree_attention.h"

namespace pyspec {
namespace {

constexpr int64_t kChunk = 256;         // positions: the unit of the running merge
constexpr int64_t kTileRows = 48;       // rows that share staged keys and values
constexpr int64_t kItemsPerThread = 8;  // items of equal size, so that a late thread costs little
constexpr int64_t kReadRows = 4;        // reading a block costs as much as computing this many rows
constexpr int64_t kSerialWork = 12000;  // work (block rows x D) below 3 us: not worth waking a thread
constexpr size_t kMaxWorkspace = 64 << 20;

// How many neighbouring KV heads a unit with these rows per head takes: few rows take many, so that pages are
// read in long runs, but not where fewer than kItemsPerThread / 2 chunks would be left for a thread.
int32_t heads_of_unit(int64_t G, int64_t rows, int64_t chunks_of_all, int threads) {
  int64_t heads = std::clamp<int64_t>(kTileRows / rows, 1, G);
  while (heads > 1 &&
         (G % heads || (threads > 1 && 2 * chunks_of_all * (G / heads) < kItemsPerThread * threads)))
    --heads;
  return int32_t(heads);
}

int64_t floats_of_partials(int64_t rows, int64_t chunks, int64_t D) { return rows * chunks * (D + 2); }

}  // namespace

size_t tree_attention_workspace_bytes(int64_t T, int64_t H, int64_t D, int64_t slots, int threads) {
  const int64_t rows = std::min(T * H, 2 * kItemsPerThread * threads * kTileRows);
  return std::min(kMaxWorkspace, size_t(floats_of_partials(rows, slots / kChunk + 1, D)) * sizeof(float));
}

void TreeAttentionPlan::build(const TreeBatch& batch, int64_t H, int64_t G, int64_t D, int64_t window_,
                              size_t workspace_bytes, int threads) {
  window = window_;
  const int64_t R = H / G, T = batch.cu_t[batch.B];
  requests.clear();
  units.clear();
  items.clear();
  parents.assign(batch.parents, batch.parents + T);
  depth.resize(T);
  int64_t total = 0, chunks_of_all = 0;
  const int64_t widest = std::max<int64_t>(1, kTileRows / R);
  const auto tiles_of = [&](int64_t nodes) { return (nodes + widest - 1) / widest; };
  for (int32_t b = 0; b < batch.B; ++b) {
    const int64_t nodes = batch.cu_t[b + 1] - batch.cu_t[b], seen = batch.kv_len[b] + nodes;
    chunks_of_all += tiles_of(nodes) * (((window ? std::min(seen, window) : seen) + kChunk - 1) / kChunk);
  }
  for (int32_t b = 0; b < batch.B; ++b) {
    const int32_t t0 = batch.cu_t[b], nodes = batch.cu_t[b + 1] - t0, L = batch.kv_len[b];
    bool chain = true;
    for (int32_t i = 0; i < nodes; ++i) {
      chain = chain && parents[t0 + i] == i - 1;
      depth[t0 + i] = i ? depth[t0 + parents[t0 + i]] + 1 : 0;
    }
    requests.push_back({t0, nodes, L, chain});
    const int64_t tiles = tiles_of(nodes);
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const int32_t node0 = int32_t(nodes * tile / tiles), end = int32_t(nodes * (tile + 1) / tiles);
      const auto [low, high] = std::minmax_element(depth.begin() + t0 + node0, depth.begin() + t0 + end);
      const int64_t first = window ? std::max<int64_t>(0, L + *low + 1 - window) : 0, last = L + *high;
      const int32_t chunk0 = int32_t(first / kChunk), chunks = int32_t(last / kChunk) - chunk0 + 1;
      const int32_t size = int32_t(last / 16 - first / 16 + 1 + (chain ? 0 : (end + 15) / 16));
      const int32_t heads = heads_of_unit(G, (end - node0) * R, chunks_of_all, threads);
      for (int32_t g = 0; g < G; g += heads) {
        units.push_back({b, g, heads, node0, end - node0, chunk0, chunks, /*parts=*/size,
                         0});  // size until the total is known
        total += size * heads * ((end - node0) * R + kReadRows);
      }
    }
  }
  serial = threads == 1 || total * D < kSerialWork;
  const int64_t target = std::max<int64_t>(1, total / (kItemsPerThread * threads));
  int64_t used = 0;
  for (size_t u = 0; u < units.size(); ++u) {
    Unit& unit = units[u];
    const int64_t rows = unit.heads * unit.nodes * R, work = unit.parts * (rows + unit.heads * kReadRows);
    const int64_t floats = (floats_of_partials(rows, unit.chunks, D) + 15) / 16 * 16;
    unit.parts = serial ? 1 : int32_t(std::min<int64_t>(unit.chunks, (work + target - 1) / target));
    if (unit.parts > 1 && size_t(used + floats) * sizeof(float) > workspace_bytes) unit.parts = 1;
    unit.partials = used;
    if (unit.parts > 1) used += floats;
    for (int64_t part = 0; part < unit.parts; ++part)
      items.push_back({int32_t(u), int32_t(unit.chunk0 + unit.chunks * part / unit.parts),
                       int32_t(unit.chunk0 + unit.chunks * (part + 1) / unit.parts)});
  }
  workspace_floats_ = used;
  if (finished_size_ < units.size()) {
    finished_size_ = 2 * units.size();
    finished_ = std::make_unique<std::atomic<int32_t>[]>(finished_size_);  // zeros
  }
}

}  // namespace pyspec
