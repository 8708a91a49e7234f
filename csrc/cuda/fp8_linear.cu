// SPDX-License-Identifier: Apache-2.0
// CUDA fp8_linear, sm_80 and newer: linear_tile.cuh with e4m3 weights, which become bf16 exactly in
// registers: exponent and mantissa are moved to their places in bf16, and a product with 2^120 corrects the
// bias, for subnormals too. Tensor cores for e4m3 itself (sm_89) would need x in e4m3 as well. The f32 sum
// over 32 k is multiplied by its block's scale in f32, whatever the granularity.
//
// Planted bugs, besides those of linear_tile.cuh: 11 the scale of the channel's neighbour block,
// 12 NaN becomes 480, 13 the sign is lost, 14 subnormals are flushed.
#include "cuda/linear_tile.cuh"
#include "pyspec/fp8_linear.h"

namespace pyspec {
namespace {

using cuda::bits_as;

// Two e4m3 in bits 0-7 and 16-23 as two bf16.
__device__ inline uint32_t widened(uint32_t pair) {
  const uint32_t magnitude = pair & 0x007f007fu;
  const uint32_t nan = (magnitude + 0x00010001u) & 0x00800080u;  // only 0x7f, which is NaN, carries
  const uint32_t sign = PYSPEC_PLANTED(13) ? 0 : (pair & 0x00800080u) << 8;
  const __nv_bfloat162 small = bits_as<__nv_bfloat162>(magnitude << 4 | sign);
  const __nv_bfloat162 bias = bits_as<__nv_bfloat162>(0x7b807b80u);  // 2^120
  uint32_t wide = bits_as<uint32_t>(__hmul2(small, bias));
  if (PYSPEC_PLANTED(14) && !(magnitude & 0x00780078u)) wide = 0;
  return PYSPEC_PLANTED(12) ? wide : wide | nan * 0xffu;
}

template <class Rows, int kTiles>
struct Float8 {
  using Params = Fp8LinearParams;
  using X = Rows;
  using Sum = float;
  static constexpr int kChannelTiles = kTiles, kStageK = cuda::kStageBytes;
  static constexpr bool kStrided = false;

  const Params& p;
  const int n;  // of the thread's first channel; the others are 8 apart
  int next_column = -1;
  float next_scale[2 * kTiles], scale[2 * kTiles];
  uint32_t a[kTiles][2][4];

  __device__ Float8(const Params& p, int n) : p(p), n(n) {}

  template <bool kAhead>
  __device__ void prefetch(int k) {
    const int column = k >> p.shift_k;
    if (kAhead && column == next_column) return;
    next_column = column;
#pragma unroll
    for (int h = 0; h < 2 * kTiles; ++h) {
      const int row = min(n + 8 * h, int(p.N) - 1) >> p.shift_n;
      const int wrong = PYSPEC_PLANTED(11) && p.shift_n == 7 && p.N > 128 ? 1 : 0;
      next_scale[h] = __ldg(p.scale + (row ^ wrong) * p.scale_stride_n + column);
    }
  }

  template <bool>
  __device__ void fragments(const cuda::Slot& slot, int chunk, int) {
    const int t = threadIdx.x % 4;
    const unsigned char* granule = slot.granule(chunk * 2 + t / 2) + t % 2 * 8;
#pragma unroll
    for (int h = 0; h < 2 * kTiles; ++h) {
      scale[h] = next_scale[h];
      const uint2 bytes = *reinterpret_cast<const uint2*>(granule + h * cuda::kChannelStep);
      const uint32_t pairs[4] = {__byte_perm(bytes.x, 0, 0x4140), __byte_perm(bytes.x, 0, 0x4342),
                                 __byte_perm(bytes.y, 0, 0x4140), __byte_perm(bytes.y, 0, 0x4342)};
#pragma unroll
      for (int i = 0; i < 4; ++i) a[h / 2][i / 2][h % 2 + i % 2 * 2] = widened(pairs[i]);
    }
  }

  template <int kRowTiles>
  __device__ void multiply(const typename X::Words& x, float (&sums)[kTiles][kRowTiles][4], int r) {
#pragma unroll
    for (int ct = 0; ct < kTiles; ++ct) {
      float part[4] = {};
      cuda::mma_32<X>(part, a[ct], x);
#pragma unroll
      for (int e = 0; e < 4; ++e) sums[ct][r][e] = fmaf(scale[2 * ct + e / 2], part[e], sums[ct][r][e]);
    }
  }

  static __device__ void store(const Params& p, int64_t m, int64_t n, float sum) { p.out[m * p.N + n] = sum; }
};

}  // namespace

void fp8_linear_cuda(const Fp8LinearParams& p, void* stream) {
  const cuda::WeightRows rows(p.weight, p.N, p.weight_stride_n, p.K);
  if (p.x_dtype == DType::kF32) return cuda::run_linear_tile<Float8, cuda::F32Rows>(p, rows, stream);
  return cuda::run_linear_tile<Float8, cuda::BF16Rows>(p, rows, stream);
}

}  // namespace pyspec
