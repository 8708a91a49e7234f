// SPDX-License-Identifier: Apache-2.0
// tree_attention on GPUs: how a block brings queries and tiles of paged K and V into shared memory.
#pragma once

#include "cuda/tree_attention_tile.cuh"

namespace pyspec::attention {

// Four consecutive queries of a row.
__device__ inline float4 load4(const void* q, DType dtype, int64_t index) {
  if (dtype == DType::kF32) return *reinterpret_cast<const float4*>(static_cast<const float*>(q) + index);
  const uint2 pairs = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(q) + index);
  const bool f16 = dtype == DType::kF16;
  const float2 a = f16 ? unpack<true>(pairs.x) : unpack<false>(pairs.x);
  const float2 b = f16 ? unpack<true>(pairs.y) : unpack<false>(pairs.y);
  return {a.x, a.y, b.x, b.y};
}

// Which rows of which KV head and which spans of them a block computes. It lies in shared memory and is read
// there where it is needed, so that it holds no registers in the loop over tiles.
struct Item {
  RowTile tile;
  int tile_index, g, part;
  int span0, part_spans;
  int stage0, stage1;  // its slots in units of kSlots
  int heads;           // of a KV head
  int kv_len;          // of the request
  int is_last;         // whether the block is the last one to arrive

  __device__ void fill(const Call& call, int index, int kv_head, int which_part, int slots) {
    tile = call.w.tiles[index];
    tile_index = index;
    g = kv_head;
    part = which_part;
    part_spans = tile.parts == 1 ? tile.spans : *call.w.part_spans;
    span0 = tile.span0 + part * part_spans;
    stage0 = max(span0 * kSpan, tile.first_slot) / slots;
    stage1 = (min((span0 + part_spans) * kSpan, tile.end_slot) + slots - 1) / slots;
    heads = int(call.p.H / call.p.G);
    kv_len = call.p.kv_len[tile.request];
  }
  __device__ bool whole() const { return tile.arrivals == 1; }  // nothing is stored for other blocks to fold
  __device__ bool apart() const {
    return part > 0 || tile.role == TileRole::kRest;
  }  // spans are not joined here
  __device__ int64_t node(int row) const { return tile.t0 + (tile.row0 + row) / heads; }
  __device__ int head(int row) const { return g * heads + (tile.row0 + row) % heads; }
  // The states that are stored of this row tile and KV head: one a span, but only the total of a first part.
  __device__ int joined() const { return tile.role == TileRole::kRest ? 0 : part_spans - 1; }
  __device__ int stored() const { return tile.spans - joined(); }
  __device__ float* state(const Call& call, int index) const {
    return call.w.partials + tile.partials +
           (int64_t(g) * stored() + index) * partial_size(tile.rows, call.p.D);
  }
  __device__ float* state_of_span(const Call& call, int span) const {
    return state(call, max(0, span - tile.span0 - joined()));
  }
};

// Rows of a tile as 16-bit values, rows beyond its last one as 0; with `split` what the rounding leaves after
// them.
template <int kD, bool kF16>
__device__ inline void load_queries(const Call& call, const Item& item, unsigned char* q) {
  const TreeAttentionCudaParams& p = call.p;
  for (int i = threadIdx.x; i < call.tile_rows * (kD / 4); i += blockDim.x) {
    const int row = i / (kD / 4), d = i % (kD / 4) * 4;
    float4 x = {0.0f, 0.0f, 0.0f, 0.0f};
    if (row < item.tile.rows)
      x = load4(p.q, p.q_dtype, item.node(row) * p.q_stride_t + item.head(row) * kD + d);
    const uint2 high = {pack<kF16>(x.x, x.y), pack<kF16>(x.z, x.w)};
    unsigned char* to = q + swizzled<kD>(row, d / 8) + d % 8 * 2;
    *reinterpret_cast<uint2*>(to) = high;
    if (call.split)
      *reinterpret_cast<uint2*>(to + call.tile_rows * kD * 2) = {pack_rest<kF16>(x.x, x.y, high.x),
                                                                 pack_rest<kF16>(x.z, x.w, high.y)};
  }
}

// Four f8 or i8 values as bf16: exact.
__device__ inline uint2 widen(uint32_t bytes, DType dtype) {
  float x[4];
  if (dtype == DType::kI8) {
    // Byte b + 128 as the lowest bits of 2^23 is 2^23 + b + 128: no conversion instruction is needed.
    const uint32_t shifted = bytes ^ 0x80808080u;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      x[i] = __uint_as_float(__byte_perm(shifted, 0x4b000000u, 0x7440 + i)) - 8388736.0f;
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const __half2_raw pair = __nv_cvt_fp8x2_to_halfraw2(__nv_fp8x2_storage_t(bytes >> 16 * i), __NV_E4M3);
      const float2 wide = __half22float2(__half2(pair));
      x[2 * i] = wide.x, x[2 * i + 1] = wide.y;
    }
  }
  return {pack<false>(x[0], x[1]), pack<false>(x[2], x[3])};
}

// A stage that has arrived, as 16-bit values: places of K with V behind it, and of the scales of K by slot
// with V's behind them (0: none).
struct StageView {
  int k, scales;
};

// Brings the slots of one request and KV head into a ring of kStages. Lane j of every warp looks up where
// slot j of a stage lies, so that the page table is read once a warp and stage.
template <int kD>
class StageLoader {
  static constexpr int kSlots = kShape<kD>.stage_slots, kStages = kShape<kD>.stages;

 public:
  __device__ StageLoader(const Call& call, const Item& item, unsigned char* memory)
      : call_(call), item_(item), memory_(memory) {}

  // Starts one stage, or an empty group beyond the last one: groups are counted.
  __device__ void load(int index, int end) {
    if (index < end) {
      const int stage = index % kStages;
      const int place = place_of(index * kSlots + int(threadIdx.x % kSlots));
      if (call_.quantised) {
        copy<1>(place, stage);
        if (threadIdx.x < kSlots) copy_scales(place, stage);
      } else {
        copy<2>(place, stage);
      }
    }
    cuda::cp_async_commit();
  }

  // The stage, once cp.async and a barrier say that it is there; f8 and i8 are widened by all threads.
  __device__ StageView ready(int index) const {
    const int stage = index % kStages;
    if (!call_.quantised) return {call_.shared.stages + stage * 2 * kSlots * kD * 2, 0};
    const unsigned char* raw = memory_ + call_.shared.stages + stage * 2 * kSlots * kD;
    unsigned char* wide = memory_ + call_.shared.wide;
    for (int i = threadIdx.x; i < 2 * kSlots * (kD / 8); i += blockDim.x) {  // rows of K, then of V
      const uint2 bytes = *reinterpret_cast<const uint2*>(raw + i * 8);
      const uint2 a = widen(bytes.x, call_.p.kv_dtype), b = widen(bytes.y, call_.p.kv_dtype);
      *reinterpret_cast<uint4*>(wide + swizzled<kD>(i / (kD / 8), i % (kD / 8))) = {a.x, a.y, b.x, b.y};
    }
    __syncthreads();
    return {call_.shared.wide, call_.shared.scales + stage * 2 * kSlots * 4};
  }

 private:
  // Page and slot in it as page << 8 | slot; -1 outside of what the row tile sees: not read, but zero.
  __device__ int place_of(int slot) const {
    if (slot < item_.tile.first_slot || slot >= item_.tile.end_slot) return -1;
    const int column = unsigned(slot + PYSPEC_PLANTED(8)) / unsigned(call_.p.S);
    const int page = call_.p.page_table[item_.tile.request * call_.p.W + column];
    return page << 8 | (slot - column * int(call_.p.S));
  }

  template <int kBytes>  // of a value
  __device__ void copy(int place, int stage) const {
    constexpr int kChunks = kD * kBytes / 16, kValues = 16 / kBytes, kPartBytes = kSlots * kD * kBytes;
    unsigned char* to = memory_ + call_.shared.stages + stage * 2 * kPartBytes;
    for (int i = threadIdx.x; i < kSlots * kChunks; i += blockDim.x) {
      const int key = i / kChunks, chunk = i % kChunks;
      const int at = __shfl_sync(kFullWarp, place, key);
      const int offset = kBytes == 2 ? swizzled<kD>(key, chunk) : i * 16;
      const auto from = [&](const KvPages& pages) {
        const int64_t row = at < 0 ? 0
                                   : int64_t(at >> 8) * pages.stride_p + int64_t(at & 255) * pages.stride_s +
                                         item_.g * pages.stride_g;
        return static_cast<const unsigned char*>(pages.data) + (row + chunk * kValues) * kBytes;
      };
      cuda::cp_async_16(to + offset, from(call_.p.k), at >= 0);
      cuda::cp_async_16(to + kPartBytes + offset, from(call_.p.v), at >= 0);
    }
  }

  __device__ void copy_scales(int place, int stage) const {  // of key threadIdx.x
    float* to = reinterpret_cast<float*>(memory_ + call_.shared.scales) + stage * 2 * kSlots + threadIdx.x;
    const int64_t slot = int64_t(place >> 8) * call_.p.S + (place & 255);
    const int64_t at = place < 0 ? 0 : slot * call_.p.G + item_.g;
    cuda::cp_async_4(to, call_.p.k_scale + at, place >= 0);
    cuda::cp_async_4(to + kSlots, call_.p.v_scale + at, place >= 0);
  }

  const Call& call_;
  const Item& item_;
  unsigned char* const memory_;
};

}  // namespace pyspec::attention
