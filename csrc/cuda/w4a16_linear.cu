// SPDX-License-Identifier: Apache-2.0
// CUDA w4a16_linear, sm_80 and newer: linear_tile.cuh with 4-bit weights, as they are in the checkpoint.
//
// A thread's 8 k are one word of 8 nibbles. (word >> 4 i) & 0x000f000f | 0x4300 pairs is 128 + q as two bf16,
// of k = i and i + 4; subtracting 128 + zero is exact, and so is every product with a bf16 x. The f32 sum
// over 32 k is multiplied by the group's scale in f32: no weight is ever rounded to bf16. Zero points need
// not be integers: their fraction is multiplied by the sum of x, an MMA with ones that only a chunk with
// fractions pays.
//
// With g_idx neighbours belong to different groups: weights are dequantised in f32 as the specification says,
// and split into bf16 hi + lo. Scales are then gathered one by one: for any g_idx, but slower.
//
// Planted bugs, besides those of linear_tile.cuh: 11 the scale of the chunk before, 12 zero
// points ignored, 13 their fraction dropped, 14 g_idx of the neighbour, 15 nibbles of a byte swapped.
#include "cuda/linear_tile.cuh"
#include "pyspec/w4a16_linear.h"

namespace pyspec {
namespace {

using cuda::bits_as;

// A scale or zero point as its bits: widened where it is used, so that nobody waits for it where it is read.
__device__ inline uint32_t raw_value(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::kF32) return __ldg(static_cast<const uint32_t*>(data) + i);
  return __ldg(static_cast<const uint16_t*>(data) + i);
}

__device__ inline float widened(uint32_t raw, DType dtype) {
  if (dtype == DType::kF32) return __uint_as_float(raw);
  if (dtype == DType::kBF16) return __uint_as_float(raw << 16);
  return __half2float(bits_as<__half>(uint16_t(raw)));
}

// The four words of two bf16, k = i and i + 4, of 8 nibbles, minus `offset` (128 + zero point, twice).
__device__ inline void dequantised(uint32_t nibbles, __nv_bfloat162 offset, uint32_t (&words)[4]) {
  if (PYSPEC_PLANTED(15)) nibbles = (nibbles >> 4 & 0x0f0f0f0fu) | (nibbles & 0x0f0f0f0fu) << 4;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t biased = cuda::and_or(nibbles >> 4 * i, 0x000f000fu, 0x43004300u);
    words[i] = bits_as<uint32_t>(__hsub2(bits_as<__nv_bfloat162>(biased), offset));
  }
}

// The part of a zero point that bf16 subtracts exactly: 128 + it and 15 - it are integers below 256.
__device__ inline float whole_part(float zero) { return rintf(fminf(fmaxf(zero, -100.0f), 100.0f)); }

template <class Rows, int kTiles>
struct Nibbles {
  using Params = W4A16LinearParams;
  using X = Rows;
  using Sum = float;
  static constexpr int kChannelTiles = kTiles, kStageK = 2 * cuda::kStageBytes;
  static constexpr bool kStrided = true;

  const Params& p;
  const int n;  // of the thread's first channel; the others are 8 apart
  int next_j = -1;
  uint32_t next_scale[2 * kTiles], next_zero[2 * kTiles];  // of group next_j, as they are in memory
  bool fresh = false;                                      // whether these are still to be widened
  float scale[2 * kTiles], fraction[2 * kTiles];           // of this chunk's group
  __nv_bfloat162 offset[2 * kTiles];
  bool fractions = false;  // whether a zero point of the warp's channels has one
  uint32_t a[kTiles][2][4];

  __device__ Nibbles(const Params& p, int n) : p(p), n(n) {}

  template <bool kAhead>
  __device__ void prefetch(int k) {
    const int j = p.J == 1 ? 0 : k >> (__ffs(int(p.group_size)) - 1);
    if (kAhead && j == next_j) return;  // a group of 64 or more: its scales are there
    next_j = j;
    fresh = true;
#pragma unroll
    for (int h = 0; h < 2 * kTiles; ++h) {
      const int64_t i = min(n + 8 * h, int(p.N) - 1) * p.J + j;
      next_scale[h] = raw_value(p.scales, p.dtype, i);
      if (p.zeros) next_zero[h] = raw_value(p.zeros, p.dtype, i);
    }
  }

  __device__ void widen() {
    bool exact = true;
#pragma unroll
    for (int h = 0; h < 2 * kTiles; ++h) {
      float whole = 8.0f;
      fraction[h] = 0.0f;
      if (p.zeros && !PYSPEC_PLANTED(12)) {
        const float zero = widened(next_zero[h], p.dtype);
        whole = whole_part(zero);
        fraction[h] = whole - zero;
      }
      exact = exact && fraction[h] == 0.0f;  // a NaN is a fraction
      scale[h] = widened(next_scale[h], p.dtype);
      offset[h] = __float2bfloat162_rn(128.0f + whole);
    }
    fractions = p.zeros && !PYSPEC_PLANTED(13) && !__all_sync(0xffffffffu, exact);
    fresh = false;
  }

  template <bool kAhead>
  __device__ void fragments(const cuda::Slot& slot, int chunk, int) {
    if ((!kAhead || fresh) && !(PYSPEC_PLANTED(11) && chunk > 0)) widen();
    const unsigned char* granule = slot.granule(chunk) + threadIdx.x % 4 * 4;
#pragma unroll
    for (int h = 0; h < 2 * kTiles; ++h) {
      uint32_t words[4];
      dequantised(*reinterpret_cast<const uint32_t*>(granule + h * cuda::kChannelStep), offset[h], words);
#pragma unroll
      for (int i = 0; i < 4; ++i) a[h / 2][i / 2][h % 2 + i % 2 * 2] = words[i];
    }
  }

  template <int kRowTiles>
  __device__ void multiply(const typename X::Words& x, float (&sums)[kTiles][kRowTiles][4], int r) {
    float x_sum[4];
    if (fractions) {
      x_sum[0] = x_sum[1] = x_sum[2] = x_sum[3] = 0.0f;
      constexpr uint32_t kOnes = 0x3f803f80u;
      const uint32_t ones[2][4] = {{kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes, kOnes, kOnes}};
      cuda::mma_32<X>(x_sum, ones, x);
    }
#pragma unroll
    for (int ct = 0; ct < kTiles; ++ct) {
      float part[4] = {};
      cuda::mma_32<X>(part, a[ct], x);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int h = 2 * ct + e / 2;
        if (fractions) part[e] = fmaf(fraction[h], x_sum[e], part[e]);
        sums[ct][r][e] = fmaf(scale[h], part[e], sums[ct][r][e]);
      }
    }
  }

  static __device__ void store(const Params& p, int64_t m, int64_t n, float sum) { p.out[m * p.N + n] = sum; }
};

// Nibbles whose groups g_idx names.
template <class Rows, int kTiles>
struct GatheredNibbles {
  using Params = W4A16LinearParams;
  using X = Rows;
  using Sum = float;
  static constexpr int kChannelTiles = kTiles, kStageK = 2 * cuda::kStageBytes;
  static constexpr bool kStrided = true;

  const Params& p;
  const int n;
  uint32_t hi[kTiles][2][4], lo[kTiles][2][4];

  __device__ GatheredNibbles(const Params& p, int n) : p(p), n(n) {}

  template <bool kAhead>
  __device__ void prefetch(int) {}

  // 8 weights of the channel whose scales begin at `first`; kGroups is 1 where all are of one group.
  template <int kGroups>
  __device__ void dequantise(uint32_t nibbles, int64_t first, const int (&group)[8],
                             float (&weight)[8]) const {
    float scale[kGroups], zero[kGroups];
#pragma unroll
    for (int i = 0; i < kGroups; ++i) {
      scale[i] = widened(raw_value(p.scales, p.dtype, first + group[i]), p.dtype);
      zero[i] = p.zeros ? widened(raw_value(p.zeros, p.dtype, first + group[i]), p.dtype) : 8.0f;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i)
      weight[i] = (float(nibbles >> 4 * i & 15) - zero[i % kGroups]) * scale[i % kGroups];
  }

  template <bool>
  __device__ void fragments(const cuda::Slot& slot, int chunk, int chunk_k) {
    const int t = threadIdx.x % 4, k = chunk_k + t * 8;
    int group[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int ki = PYSPEC_PLANTED(14) ? k + (i ^ 1) : k + i;
      group[i] = ki < p.K ? __ldg(p.g_idx + ki) : 0;  // behind K x is zero
    }
    const unsigned char* granule = slot.granule(chunk) + t * 4;
    bool same = true;
#pragma unroll
    for (int i = 1; i < 8; ++i) same = same && group[i] == group[0];
    const bool neighbours =
        __all_sync(0xffffffffu, same);  // checkpoints without act-order may have a g_idx too
#pragma unroll
    for (int h = 0; h < 2 * kTiles; ++h) {
      const uint32_t nibbles = *reinterpret_cast<const uint32_t*>(granule + h * cuda::kChannelStep);
      const int64_t first = min(n + 8 * h, int(p.N) - 1) * p.J;
      float weight[8];
      if (neighbours) {
        dequantise<1>(nibbles, first, group, weight);
      } else {
        dequantise<8>(nibbles, first, group, weight);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
        cuda::F32Rows::split(weight[i], weight[i + 4], hi[h / 2][i / 2][h % 2 + i % 2 * 2],
                             lo[h / 2][i / 2][h % 2 + i % 2 * 2]);
    }
  }

  template <int kRowTiles>
  __device__ void multiply(const typename X::Words& x, float (&sums)[kTiles][kRowTiles][4], int r) {
#pragma unroll
    for (int ct = 0; ct < kTiles; ++ct) {
      cuda::mma_bf16(sums[ct][r], lo[ct][0], x.hi[0], x.hi[1]);
      cuda::mma_bf16(sums[ct][r], lo[ct][1], x.hi[2], x.hi[3]);
      cuda::mma_32<X>(sums[ct][r], hi[ct], x);
    }
  }

  static __device__ void store(const Params& p, int64_t m, int64_t n, float sum) { p.out[m * p.N + n] = sum; }
};

}  // namespace

void w4a16_linear_cuda(const W4A16LinearParams& p, void* stream) {
  const cuda::WeightRows rows(p.qweight, p.N, p.K / 2, p.K / 2);
  constexpr int kWidest = 2;  // of the gathered kind: its time goes into dequantising
  if (p.g_idx && p.x_dtype == DType::kF32)
    return cuda::run_linear_tile<GatheredNibbles, cuda::F32Rows, kWidest>(p, rows, stream);
  if (p.g_idx) return cuda::run_linear_tile<GatheredNibbles, cuda::BF16Rows, kWidest>(p, rows, stream);
  if (p.x_dtype == DType::kF32) return cuda::run_linear_tile<Nibbles, cuda::F32Rows>(p, rows, stream);
  return cuda::run_linear_tile<Nibbles, cuda::BF16Rows>(p, rows, stream);
}

}  // namespace pyspec
