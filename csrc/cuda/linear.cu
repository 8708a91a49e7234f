// SPDX-License-Identifier: Apache-2.0
// CUDA linear, sm_80 and newer. bf16 weights: linear_tile.cuh. f32 weights: FMA on the CUDA cores, as nothing
// less gives f32 results: a warp is 4 channels and 8 rows, lane l sums k = 4 l .. 4 l + 3, then 128 further,
// in ascending order, and lanes are added in a butterfly: an order by K alone.
//
// Planted bugs, besides those of linear_tile.cuh: 11 no bias, 12 the butterfly leaves out a
// step, 13 the last k of an odd K is left out, 14 hi parts of f32 rows alone.
#include "cuda/linear_tile.cuh"
#include "cuda/row.cuh"
#include "pyspec/linear.h"

namespace pyspec {
namespace {

__device__ inline void store_biased(const LinearParams& p, int64_t m, int64_t n, float sum) {
  p.out[m * p.out_stride_m + n] = p.bias && !PYSPEC_PLANTED(11) ? sum + p.bias[n] : sum;
}

template <class Rows, int kTiles>
struct BFloat16 {
  using Params = LinearParams;
  using X = Rows;
  using Sum = float;
  static constexpr int kChannelTiles = kTiles, kStageK = cuda::kStageBytes / 2;
  static constexpr bool kStrided = false;

  uint32_t a[kTiles][2][4];

  __device__ BFloat16(const Params&, int) {}

  template <bool kAhead>
  __device__ void prefetch(int) {}

  template <bool>
  __device__ void fragments(const cuda::Slot& slot, int, int) {
    const unsigned char* granule = slot.granule(threadIdx.x % 4);
#pragma unroll
    for (int h = 0; h < 2 * kTiles; ++h) {
      const uint4 pairs = *reinterpret_cast<const uint4*>(granule + h * cuda::kChannelStep);
      a[h / 2][0][h % 2] = pairs.x;
      a[h / 2][0][h % 2 + 2] = pairs.y;
      a[h / 2][1][h % 2] = pairs.z;
      a[h / 2][1][h % 2 + 2] = pairs.w;
    }
  }

  template <int kRowTiles>
  __device__ void multiply(typename X::Words x, float (&sums)[kTiles][kRowTiles][4], int r) {
    if constexpr (sizeof(x) > 16)
      for (uint32_t& word : x.lo) word = PYSPEC_PLANTED(14) ? 0 : word;
#pragma unroll
    for (int ct = 0; ct < kTiles; ++ct) cuda::mma_32<X>(sums[ct][r], a[ct], x);
  }

  static __device__ void store(const Params& p, int64_t m, int64_t n, float sum) {
    store_biased(p, m, n, sum);
  }
};

constexpr int kChannels = 4, kRows = 8, kBlockChannels = kChannels * cuda::kLinearWarps;  // 32 sums a thread

template <bool kVector>
__global__ void __launch_bounds__(cuda::kLinearThreads) multiply_f32(const LinearParams p) {
  const int64_t m_tiles = (p.M + kRows - 1) / kRows, m0 = blockIdx.x % m_tiles * kRows;
  const int64_t n0 = blockIdx.x / m_tiles * kBlockChannels + threadIdx.x / 32 * kChannels;
  const int lane = threadIdx.x % 32;
  if (n0 >= p.N) return;
  const float* weight = static_cast<const float*>(p.weight);
  const float* x = static_cast<const float*>(p.x);
  float sums[kChannels][kRows] = {};
  const int64_t K = p.K - (PYSPEC_PLANTED(13) ? p.K % 2 : 0);
  for (int64_t k = 4 * lane; k < K; k += 128) {
    float4 w[kChannels];
#pragma unroll
    for (int c = 0; c < kChannels; ++c)
      w[c] = cuda::load4<kVector>(weight + min(n0 + c, p.N - 1) * p.weight_stride_n + k, K - k);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (m0 + r >= p.M) break;
      const float4 v = *reinterpret_cast<const float4*>(x + (m0 + r) * p.x_stride_m + k);  // padded
#pragma unroll
      for (int c = 0; c < kChannels; ++c)
        sums[c][r] = fmaf(w[c].w, v.w, fmaf(w[c].z, v.z, fmaf(w[c].y, v.y, fmaf(w[c].x, v.x, sums[c][r]))));
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (m0 + r >= p.M) break;
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      float sum = sums[c][r];
      for (int step = 16; step > (PYSPEC_PLANTED(12) ? 1 : 0); step /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, step);
      if (lane == 0 && n0 + c < p.N) store_biased(p, m0 + r, n0 + c, sum);
    }
  }
}

void run_f32(const LinearParams& p, void* stream) {
  if (p.M == 0 || p.N == 0) return;
  const int64_t m_tiles = (p.M + kRows - 1) / kRows, n_tiles = (p.N + kBlockChannels - 1) / kBlockChannels;
  const bool vector = p.K % 4 == 0 && cuda::aligned16(static_cast<const float*>(p.weight), p.weight_stride_n);
  const auto kernel = vector ? multiply_f32<true> : multiply_f32<false>;
  PYSPEC_LAUNCH(kernel, unsigned(m_tiles * n_tiles), cuda::kLinearThreads, 0, stream, p);
}

}  // namespace

void linear_cuda(const LinearParams& p, void* stream) {
  if (p.dtype == DType::kF32) return run_f32(p, stream);
  const cuda::WeightRows rows(p.weight, p.N, 2 * p.weight_stride_n, 2 * p.K);
  if (p.x_dtype == DType::kF32) return cuda::run_linear_tile<BFloat16, cuda::F32Rows>(p, rows, stream);
  return cuda::run_linear_tile<BFloat16, cuda::BF16Rows>(p, rows, stream);
}

}  // namespace pyspec
