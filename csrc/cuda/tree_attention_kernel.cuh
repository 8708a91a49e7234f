// SPDX-License-Identifier: Apache-2.0
// The kernel of CUDA tree_attention: one block is one part of one row tile, its warps share the rows, and all
// of them read each tile of K and V once from shared memory, where cp.async brings it two stages ahead.
//
// Order of a row's sums: within a span an online softmax over its tiles in ascending order, from nothing;
// spans joined by a left fold in ascending order. A tile that a row does not see adds exact zeros, so neither
// other rows nor where a part begins or ends changes a bit: a block that does several spans keeps the total
// in shared memory; parts store theirs, and the last one to arrive folds them. Spans that begin all requests
// of a group are computed for the rows of all of them, as the base that the rest of each is folded onto.
#pragma once

#include "cuda/tree_attention_load.cuh"
#include "cuda/tree_attention_tile.cuh"

namespace pyspec::attention {

constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

// Factors of two states that become one: max is the larger one, in exponents of 2.
struct Join {
  float max, first, second;
  __device__ Join(float a, float b) {
    max = fmaxf(a, b);
    first = cuda::exp2_approx(a - finite_max(max));
    second = cuda::exp2_approx(b - finite_max(max));
  }
};

// A row's result: what its accumulators are multiplied with, and its lse.
struct RowResult {
  float factor, lse;
  __device__ RowResult(float max, float sum, const float* sinks, int head) {
    float scale = 1.0f;
    if (sinks) {
      const Join join(max, sinks[head] * kLog2E);
      scale = join.first;
      sum = fmaf(sum, join.first, join.second);
      max = join.max;
    }
    factor = scale / sum;
    lse = fmaf(max, kLn2, logf(sum));
  }
};

// Four consecutive results of one row.
__device__ inline void store_out(void* out, DType dtype, int64_t index, float4 x) {
  if (dtype == DType::kF32) {
    *reinterpret_cast<float4*>(static_cast<float*>(out) + index) = x;
  } else {
    const bool f16 = dtype == DType::kF16;
    *reinterpret_cast<uint2*>(static_cast<uint16_t*>(out) + index) = {
        f16 ? pack<true>(x.x, x.y) : pack<false>(x.x, x.y),
        f16 ? pack<true>(x.z, x.w) : pack<false>(x.z, x.w)};
  }
}

__device__ inline float4 times(float4 x, float factor) {
  return {x.x * factor, x.y * factor, x.z * factor, x.w * factor};
}

// A row of a fold or a block's own: where it ends up, in the results or as the base of others.
__device__ inline void store_sums(const Call& call, const Item& item, int64_t index, float max, float sum,
                                  float lse) {
  if (item.tile.role == TileRole::kShared)
    reinterpret_cast<float2*>(call.w.base_sums)[index] = {max, sum};
  else
    call.p.lse[index] = lse;
}

// Joins the stored states of a row tile in the order of spans, after the bases if it has them: 4 columns of a
// row a thread.
template <int kD>
__device__ void fold_parts(const Call& call, const Item& item) {
  const TreeAttentionCudaParams& p = call.p;
  const int rows = item.tile.rows, stored = item.stored();
  const int64_t size = partial_size(rows, kD);
  const float* first = item.state(call, 0);
  for (int i = threadIdx.x; i < rows * (kD / 4); i += blockDim.x) {
    const int row = i / (kD / 4), d = i % (kD / 4) * 4;
    const int64_t index = item.node(row) * p.H + item.head(row);
    float2 sums = {-INFINITY, 0.0f};
    float4 acc = {0.0f, 0.0f, 0.0f, 0.0f};
    if (item.tile.role == TileRole::kRest) {
      sums = __ldcg(reinterpret_cast<const float2*>(call.w.base_sums) + index);
      acc = __ldcg(reinterpret_cast<const float4*>(call.w.bases + index * kD + d));
    }
#pragma unroll 4
    for (int part = PYSPEC_PLANTED(10); part < stored; ++part) {
      const float* state = first + part * size;
      const float2 more = __ldcg(reinterpret_cast<const float2*>(state + rows * kD + 2 * row));
      const float4 x = __ldcg(reinterpret_cast<const float4*>(state + row * kD + d));
      const Join join(sums.x, more.x);
      acc = times(acc, join.first);
      acc = {fmaf(x.x, join.second, acc.x), fmaf(x.y, join.second, acc.y), fmaf(x.z, join.second, acc.z),
             fmaf(x.w, join.second, acc.w)};
      sums = {join.max, fmaf(more.y, join.second, sums.y * join.first)};
    }
    const RowResult result(sums.x, sums.y, p.sinks, item.head(row));
    if (item.tile.role == TileRole::kShared)
      store_out(call.w.bases, DType::kF32, index * kD + d, acc);
    else
      store_out(p.out, p.q_dtype, index * kD + d, times(acc, result.factor));
    if (d == 0) store_sums(call, item, index, sums.x, sums.y, result.lse);
  }
}

// What every row sees, and what the rows of this warp do.
__device__ inline void describe_rows(const Call& call, const Item& item, unsigned char* memory,
                                     int warp_rows) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, row = warp * warp_rows + lane;
  NodeRange range{0, 0};
  WarpView view{0x7fffffff, 0, 0, 0x7fffffff};
  if (lane < warp_rows && row < item.tile.rows) {
    const int t = int(item.node(row));
    range = call.w.ranges[t];
    const int end = item.tile.is_tree ? item.kv_len + t - item.tile.t0 + 1 : range.high;
    view = {range.low, end, range.low, range.high};
  }
  if (lane < warp_rows) reinterpret_cast<NodeRange*>(memory + call.shared.ranges)[row] = range;
  view = {__reduce_min_sync(kFullWarp, view.seen0), __reduce_max_sync(kFullWarp, view.seen1),
          __reduce_max_sync(kFullWarp, view.open0), __reduce_min_sync(kFullWarp, view.open1)};
  if (lane == 0) reinterpret_cast<WarpView*>(memory + call.shared.warps)[warp] = view;
}

// Bits of a tile's slots, from `first` on, that a row sees; none for rows beyond the last one.
__device__ inline uint32_t visible_bits(const Call& call, const Item& item, const unsigned char* memory,
                                        int row, int first) {
  const NodeRange range = reinterpret_cast<const NodeRange*>(memory + call.shared.ranges)[row];
  uint32_t bits = bits_from(range.low - first) & ~bits_from(range.high - first);
  if (item.tile.is_tree && first + kTile > item.kv_len && row < item.tile.rows)
    bits |=
        bits_at(call.w.masks + item.node(row) * call.w.mask_words, call.w.mask_words, first - item.kv_len);
  return bits;
}

// The rule of a call's scores, applied to those of 16 rows over one tile; `scales` of its keys, or null.
__device__ inline void finish_scores(float (&scores)[kTile / 8][4], const Call& call, const float* scales,
                                     int lane) {
  const float cap = call.p.softcap, scale = cap == 0.0f ? call.p.scale * kLog2E : call.p.scale / cap;
#pragma unroll
  for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (scales) scores[n][i] *= scales[8 * n + lane % 4 * 2 + i % 2];
      scores[n][i] *= scale;
      if (cap != 0.0f) scores[n][i] = cap * kLog2E * tanhf(scores[n][i]);
    }
}

// -inf for what rows do not see, by their bits of the tile's slots.
__device__ inline void hide(float (&scores)[kTile / 8][4], const uint32_t (&seen)[2], int lane) {
#pragma unroll
  for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (!(seen[i / 2] >> (8 * n + lane % 4 * 2 + i % 2) & 1)) scores[n][i] = -INFINITY;
}

// Weights of 16 rows over one tile as operands of the product with V: two 16-bit parts of each.
template <bool kF16>
__device__ inline void pack_weights(const float (&scores)[kTile / 8][4], const float* scales, bool split,
                                    uint32_t (&weights)[4], uint32_t (&rest)[4], int lane) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    float x = scores[i / 2][i % 2 * 2], y = scores[i / 2][i % 2 * 2 + 1];
    if (scales && !PYSPEC_PLANTED(7)) {  // of a slot that a row does not see the scale may be NaN
      const float* scale = scales + i / 2 * 8 + lane % 4 * 2;
      x = x == 0.0f ? 0.0f : x * scale[0];
      y = y == 0.0f ? 0.0f : y * scale[1];
    }
    weights[i] = pack<kF16>(x, y);
    if (split) rest[i] = pack_rest<kF16>(x, y, weights[i]);
  }
}

// The end of a span, for one row and half of a fragment's accumulators: into the total so far, which stays in
// shared memory while more spans follow here, and is the result or stored for others after the last one.
template <int kD>
__device__ inline void finish_row(float (&acc)[kD / 8][4], int half, float max, float sum, const Call& call,
                                  const Item& item, int row, float2* total, float2* total_sums, bool joins,
                                  bool keeps, int span, int lane) {
  const TreeAttentionCudaParams& p = call.p;
  const float2 before = joins ? *total_sums : float2{-INFINITY, 0.0f};
  const Join join(before.x, max);
  sum = fmaf(sum, join.second, before.y * join.first);
#pragma unroll
  for (int n = 0; n < kD / 8; ++n) {
    float2* kept = total + n * 2 * kWarp;
    const float2 x = joins ? *kept : float2{0.0f, 0.0f};
    acc[n][2 * half] = fmaf(acc[n][2 * half], join.second, x.x * join.first);
    acc[n][2 * half + 1] = fmaf(acc[n][2 * half + 1], join.second, x.y * join.first);
    if (keeps) *kept = {acc[n][2 * half], acc[n][2 * half + 1]};
  }
  __syncwarp();  // all four lanes of the row have read its sums
  const bool first_lane = lane % 4 == 0, odd = lane % 2 == 1;
  if (keeps) {
    if (first_lane) *total_sums = {join.max, sum};
    return;
  }
  // Results, or what other blocks will fold, which is f32 and not scaled.
  const bool whole = item.whole(), is_result = whole && item.tile.role == TileRole::kOwn;
  const RowResult result(join.max, sum, p.sinks, item.head(row));
  const float factor = is_result ? result.factor : 1.0f;
  const DType dtype = is_result ? p.q_dtype : DType::kF32;
  void* const to = is_result ? p.out : whole ? call.w.bases : item.state_of_span(call, span);
  const int64_t index = whole ? item.node(row) * p.H + item.head(row) : unsigned(row);
#pragma unroll
  for (int n = 0; n < kD / 8; n += 2) {
    // Neighbours swap pairs, so that each has four columns of one 8, and four lanes write whole sectors.
    const float2 even_pair = {acc[n][2 * half], acc[n][2 * half + 1]};
    const float2 odd_pair = {acc[n + 1][2 * half], acc[n + 1][2 * half + 1]};
    const float x = __shfl_xor_sync(kFullWarp, odd ? even_pair.x : odd_pair.x, 1);
    const float y = __shfl_xor_sync(kFullWarp, odd ? even_pair.y : odd_pair.y, 1);
    const float4 four = odd ? float4{x, y, odd_pair.x, odd_pair.y} : float4{even_pair.x, even_pair.y, x, y};
    __syncwarp();  // all swaps at once would take more registers than there are
    if (row < item.tile.rows)
      store_out(to, dtype, index * kD + 8 * (n + odd) + lane % 4 / 2 * 4, times(four, factor));
  }
  if (row >= item.tile.rows || !first_lane) return;
  if (whole)
    store_sums(call, item, index, join.max, sum, result.lse);
  else
    reinterpret_cast<float2*>(static_cast<float*>(to) + item.tile.rows * kD)[unsigned(row)] = {join.max, sum};
}

// Whether this block is the last one that a row tile needs.
__device__ inline bool arrives_last(const Call& call, Item& item) {
  __threadfence();  // what this part stored, before it says so
  if (!PYSPEC_PLANTED(5)) __syncthreads();
  if (threadIdx.x == 0) {
    int32_t* arrived = call.w.arrived + item.tile_index * call.p.G + item.g;
    item.is_last = atomicAdd(arrived, 1) == item.tile.arrivals - 1;
    if (item.is_last) *arrived = 0;
  }
  __syncthreads();
  __threadfence();
  return item.is_last;
}

// Bases are there: row tiles of the requests whose rows these are may have waited for nothing else.
template <int kD>
__device__ void finish_rest(const Call& call, Item& item) {
  const TreeAttentionCudaParams& p = call.p;
  const auto own_tile = [&](int row) {
    const int t = int(item.node(row)), b = request_of(p.cu_t, p.B, t);
    return call.w.own_tile[b] +
           ((t - p.cu_t[b]) * item.heads + (item.tile.row0 + row) % item.heads) / call.tile_rows;
  };
  const int first = own_tile(0), last = own_tile(item.tile.rows - 1), g = item.g;
  for (int tile = first; tile <= last; ++tile) {
    __syncthreads();  // nobody reads the item any more
    if (threadIdx.x == 0) item.fill(call, tile, g, 0, kTile);
    if (arrives_last(call, item)) fold_parts<kD>(call, item);
  }
}

template <int kD, bool kF16, int kFrags>
__global__ void __launch_bounds__(kFrags == kShape<kD>.max_frags ? kShape<kD>.max_warps * kWarp : 128,
                                  kFrags == kShape<kD>.max_frags ? 1 : 4) attend(const Call call) {
  constexpr int kSlots = kShape<kD>.stage_slots, kStages = kShape<kD>.stages;
  const int tile_index = call.w.item_tile[blockIdx.x];
  if (tile_index < 0) return;
  PYSPEC_DYNAMIC_SHARED(memory);
  static_assert(sizeof(Item) <= kItemBytes);
  Item& item = *reinterpret_cast<Item*>(memory + call.shared.item);
  if (threadIdx.x == 0) {
    const RowTile& tile = call.w.tiles[tile_index];
    const int place = int(blockIdx.x) - tile.first_item;
    item.fill(call, tile_index, place / tile.parts, place % tile.parts, kSlots);
  }
  __syncthreads();

  StageLoader<kD> loader(call, item, memory);
#pragma unroll
  for (int ahead = 0; ahead < kStages - 1; ++ahead) loader.load(item.stage0 + ahead, item.stage1);
  load_queries<kD, kF16>(call, item, memory);
  describe_rows(call, item, memory, 16 * kFrags);

  const int lane = threadIdx.x % kWarp, warp_row = threadIdx.x / kWarp * 16 * kFrags;
  // The place of this lane's chunk in 16 rows as ldmatrix reads Q and V, and as it reads K.
  const int along = swizzled<kD>(lane % 16, lane / 16);
  const int k = swizzled<kD>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
  const int q_rest = call.split ? call.tile_rows * kD * 2 : 0;
  WarpRows<kD, kF16, kFrags> state;
  state.clear();
  for (int stage = item.stage0; stage < item.stage1; ++stage) {
    if (PYSPEC_PLANTED(1)) {
      cuda::cp_async_wait<kStages - 1>();
    } else {
      cuda::cp_async_wait<kStages - 2>();
    }
    if (!PYSPEC_PLANTED(2)) __syncthreads();
    loader.load(stage + kStages - 1, item.stage1);
    const StageView kv = loader.ready(stage);
#pragma unroll 1
    for (int slot = 0; slot < kSlots; slot += kTile) {
      const int first = stage * kSlots + slot, end = first + kTile, tile = kv.k + slot * kD * 2;
      const WarpView& view =
          reinterpret_cast<const WarpView*>(memory + call.shared.warps)[threadIdx.x / kWarp];
      if (first >= view.seen1 || end <= view.seen0) continue;
      float scores[kFrags][kTile / 8][4];
      uint32_t weights[kFrags][4], rest[kFrags][4];
      state.dot(scores, memory, along + warp_row * kD * 2, q_rest, tile + k);
      const bool masked = first < view.open0 || end > view.open1;
      const float* scales = kv.scales ? reinterpret_cast<const float*>(memory + kv.scales) + slot : nullptr;
      const auto seen_by = [&](int f, uint32_t (&seen)[2]) {
#pragma unroll
        for (int half = 0; half < 2; ++half)
          seen[half] = visible_bits(call, item, memory, warp_row + 16 * f + 8 * half + lane / 4, first);
      };
#pragma unroll
      for (int f = 0; f < kFrags; ++f) {
        finish_scores(scores[f], call, scales, lane);
        if (masked) {
          uint32_t seen[2];
          seen_by(f, seen);
          hide(scores[f], seen, lane);
        }
        state.soften(scores[f], f);
        pack_weights<kF16>(scores[f], scales ? scales + kSlots : nullptr, call.split, weights[f], rest[f],
                           lane);
      }
      const uint32_t broken =
          state.add_values(weights, rest, call.split, memory, tile + kSlots * kD * 2 + along, masked);
      if (!broken) continue;
#pragma unroll
      for (int f = 0; f < kFrags; ++f) {
        uint32_t seen[2];
        seen_by(f, seen);
#pragma unroll
        for (int half = 0; half < 2; ++half)
          if (seen[half] & broken) state.sum[f][half] = NAN;
      }
    }
    const int span = stage * kSlots / kSpan;
    if ((stage + 1) * kSlots % kSpan != 0 && stage + 1 < item.stage1) continue;
    state.reduce();
    const bool joins = !item.apart() && span > item.span0, keeps = !item.apart() && stage + 1 < item.stage1;
#pragma unroll
    for (int f = 0; f < kFrags; ++f)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row = warp_row + 16 * f + 8 * half + lane / 4;
        float2* total = reinterpret_cast<float2*>(memory + call.shared.total) + warp_row * kD / 2 + lane;
        finish_row<kD>(state.acc[f], half, state.max[f][half], state.sum[f][half], call, item, row,
                       total + (f * kD / 4 + half) * kWarp,
                       reinterpret_cast<float2*>(memory + call.shared.total_sums) + row, joins, keeps, span,
                       lane);
      }
    state.clear();
  }
  if (!item.whole()) {
    if (!arrives_last(call, item)) return;
    fold_parts<kD>(call, item);
  }
  if (item.tile.role == TileRole::kShared) finish_rest<kD>(call, item);
}

}  // namespace pyspec::attention
