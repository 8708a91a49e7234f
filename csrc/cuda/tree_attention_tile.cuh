// SPDX-License-Identifier: Apache-2.0
// tree_attention on tensor cores: what one warp computes for its rows over one tile of slots.
#pragma once

#include "cuda/ptx.cuh"
#include "cuda/tree_attention_config.h"

namespace pyspec::attention {

using cuda::kWarp;
constexpr unsigned kFullWarp = 0xffffffffu;
template <int kD>
constexpr Shape kShape = shape_of(kD);

// Floats of a stored span: accumulators [rows, D], then (max, sum) [rows, 2], in whole sectors.
__device__ inline int64_t partial_size(int64_t rows, int64_t D) { return rows * D + (2 * rows + 7) / 8 * 8; }

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

// Where 16-byte chunk `chunk` of a row of 16-bit values lies in shared memory, in bytes. The chunks of 8
// consecutive rows, as ldmatrix reads them, fall on different banks: rows of 128, 256 or 512 bytes begin
// at the same bank, rows of 192 bytes (D = 96) at every other one.
template <int kD>
__device__ inline int swizzled(int row, int chunk) {
  return row * kD * 2 + ((chunk ^ (kD == 96 ? row >> 1 & 3 : row & 7)) << 4);
}
// The same 2 `pairs` chunks further, from the place of chunk 0 or 1: one operation with constants, so that
// the unrolled loops over d need one register for all their addresses.
template <int kD>
__device__ inline int swizzled_step(int place, int pairs) {
  if constexpr (kD == 96) return (place ^ (pairs % 2 * 32)) + pairs / 2 * 64;
  return (place ^ (pairs % 4 * 32)) + pairs / 4 * 128;
}

template <bool kF16>
__device__ inline void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  if constexpr (kF16)
    cuda::mma_f16(d, a, b0, b1);
  else
    cuda::mma_bf16(d, a, b0, b1);
}

template <typename T>
__device__ inline uint32_t bits_of(T pair) {
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Two f32 as a pair of 16-bit values, and what that rounding leaves as another.
template <bool kF16>
__device__ inline uint32_t pack(float x, float y) {
  if constexpr (kF16)
    return bits_of(__floats2half2_rn(x, y));
  else
    return bits_of(__floats2bfloat162_rn(x, y));
}
template <bool kF16>
__device__ inline float2 unpack(uint32_t pair) {
  if constexpr (kF16)
    return __half22float2(*reinterpret_cast<const __half2*>(&pair));
  else
    return {__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}
template <bool kF16>
__device__ inline uint32_t pack_rest(float x, float y, uint32_t pair) {
  const float2 rounded = unpack<kF16>(pair);
  return pack<kF16>(x - rounded.x, y - rounded.y);
}

// Sets those of a pair that are NaN or infinite to 0; returns which.
template <bool kF16>
__device__ inline uint32_t clear_infinite(uint32_t& pair) {
  constexpr uint32_t kExponent = kF16 ? 0x7c00 : 0x7f80;
  uint32_t cleared = 0;
  if ((pair & kExponent) == kExponent) pair &= 0xffff0000u, cleared |= 1;
  if ((pair >> 16 & kExponent) == kExponent) pair &= 0xffffu, cleared |= 2;
  return cleared;
}

// Bits >= i of a word.
__device__ inline uint32_t bits_from(int i) { return i <= 0 ? ~0u : i < 32 ? ~0u << i : 0u; }

// 32 bits of `count` words from bit `i` > -32 on; 0 outside of them.
__device__ inline uint32_t bits_at(const uint32_t* words, int count, int i) {
  const int word = i >> 5;
  const uint32_t low = word >= 0 && word < count ? words[word] : 0;
  const uint32_t high = word + 1 < count ? words[word + 1] : 0;
  return __funnelshift_r(low, high, i & 31);
}

// The difference that fits exp2: 0 where nothing was seen yet, so that -inf - max is -inf and never NaN.
__device__ inline float finite_max(float max) { return max == -INFINITY ? 0.0f : max; }

// Accumulators of a warp's 16 kFrags rows over part of a span, as mma m16n8 leaves them: lane l has rows l /
// 4 and l / 4 + 8 of a fragment, columns 2 (l % 4) and the next of every 8. max is in exponents of 2; sum is
// this lane's share of its columns until reduce().
template <int kD, bool kF16, int kFrags>
struct WarpRows {
  float acc[kFrags][kD / 8][4];
  float max[kFrags][2], sum[kFrags][2];

  __device__ void clear() {
#pragma unroll
    for (int f = 0; f < kFrags; ++f) {
#pragma unroll
      for (int n = 0; n < kD / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) acc[f][n][i] = 0.0f;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        max[f][half] = -INFINITY;
        sum[f][half] = 0.0f;
      }
    }
  }

  // scores = Q K^T, each a chain over d, by the places of this lane's chunk of Q (`rest` bytes further the
  // second parts, 0: none) and of K.
  __device__ static void dot(float (&scores)[kFrags][kTile / 8][4], const unsigned char* memory, int q,
                             int rest, int k) {
#pragma unroll
    for (int f = 0; f < kFrags; ++f)
#pragma unroll
      for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[f][n][i] = 0.0f;
#pragma unroll
    for (int step = 0; step < kD / 16; ++step) {
      uint32_t b[4];
      cuda::ldmatrix_x4(b, memory + swizzled_step<kD>(k, step));
#pragma unroll
      for (int f = 0; f < kFrags; ++f) {
        const unsigned char* rows = memory + swizzled_step<kD>(q, step) + f * 16 * kD * 2;
        uint32_t a[4];
        cuda::ldmatrix_x4(a, rows);
        multiply(scores[f], a, b);
        if (rest) {
          cuda::ldmatrix_x4(a, rows + rest);
          multiply(scores[f], a, b);
        }
      }
    }
  }
  __device__ static void multiply(float (&scores)[kTile / 8][4], const uint32_t (&a)[4],
                                  const uint32_t (&b)[4]) {
#pragma unroll
    for (int n = 0; n < kTile / 8; ++n) mma<kF16>(scores[n], a, b[2 * n], b[2 * n + 1]);
  }

  // Scores to weights exp2(score - max), in place; the state so far is scaled to the new max.
  __device__ void soften(float (&scores)[kTile / 8][4], int f) {
    float factor[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float top = max[f][half];
#pragma unroll
      for (int n = 0; n < kTile / 8; ++n)
        top = fmaxf(top, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
      top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 1));
      top = fmaxf(top, __shfl_xor_sync(kFullWarp, top, 2));
      const float base = finite_max(top);
      factor[half] = cuda::exp2_approx(max[f][half] - base);
      max[f][half] = top;
      float total = 0.0f;
#pragma unroll
      for (int n = 0; n < kTile / 8; ++n)
#pragma unroll
        for (int i = 2 * half; i < 2 * half + 2; ++i) {
          scores[n][i] = cuda::exp2_approx(scores[n][i] - base);
          total += scores[n][i];
        }
      sum[f][half] = fmaf(sum[f][half], factor[half], total);
    }
    if (PYSPEC_PLANTED(6)) return;
    if (!__any_sync(kFullWarp, factor[0] != 1.0f || factor[1] != 1.0f)) return;  // times 1 changes no bit
#pragma unroll
    for (int n = 0; n < kD / 8; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) acc[f][n][i] *= factor[i / 2];
  }

  // acc += P V by the place of this lane's chunk of V; with `split` the weights' second parts after the first
  // ones. 0 times NaN is NaN: if some row does not see some key (`masked`), values that are not finite are
  // taken as 0, and the bits of their keys returned for the rows that do see them.
  __device__ uint32_t add_values(const uint32_t (&weights)[kFrags][4], const uint32_t (&rest)[kFrags][4],
                                 bool split, const unsigned char* memory, int v, bool masked) {
    uint32_t broken = 0;
#pragma unroll
    for (int n = 0; n < kD / 16; ++n) {
      uint32_t b[4];
      cuda::ldmatrix_x4_trans(b, memory + swizzled_step<kD>(v, n));
      if (masked && !PYSPEC_PLANTED(4))
#pragma unroll
        for (int i = 0; i < 4; ++i) broken |= clear_infinite<kF16>(b[i]) << (i % 2 * 8);
#pragma unroll
      for (int f = 0; f < kFrags; ++f) {
        mma<kF16>(acc[f][2 * n], weights[f], b[0], b[1]);
        mma<kF16>(acc[f][2 * n + 1], weights[f], b[2], b[3]);
        if (split) {
          mma<kF16>(acc[f][2 * n], rest[f], b[0], b[1]);
          mma<kF16>(acc[f][2 * n + 1], rest[f], b[2], b[3]);
        }
      }
    }
    if (!masked) return 0;
    return __reduce_or_sync(kFullWarp, broken << (threadIdx.x % 4 * 2));
  }

  // Each row's sum, in all four lanes that share the row.
  __device__ void reduce() {
#pragma unroll
    for (int f = 0; f < kFrags; ++f)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        sum[f][half] += __shfl_xor_sync(kFullWarp, sum[f][half], 1);
        sum[f][half] += __shfl_xor_sync(kFullWarp, sum[f][half], 2);
      }
  }
};

}  // namespace pyspec::attention
