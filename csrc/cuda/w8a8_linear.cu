// SPDX-License-Identifier: Apache-2.0
// CUDA w8a8_linear, sm_80 and newer: linear_tile.cuh with int8 weights and int8 rows. The int32 sums are
// exact, so the result is the specification's, bit for bit.
//
// Planted bugs, besides those of linear_tile.cuh: 11 the scales are multiplied with each other
// first, 12 the two halves of 8 k are swapped in the weight alone, 13 bf16 results are cut off.
#include "cuda/linear_tile.cuh"
#include "pyspec/w8a8_linear.h"

namespace pyspec {
namespace {

// Rows of int8 as the B operand: 8 consecutive k, of which the MMA takes 4 for each half of its 32.
struct Int8Rows {
  using T = int8_t;
  using Raw = uint2;
  using Words = uint2;
  static __device__ Raw load(const T* x) { return __ldg(reinterpret_cast<const uint2*>(x)); }
  template <bool kStrided>
  static __device__ Words words(const Raw& r) {
    return r;
  }
};

template <class Rows, int kTiles>
struct Int8 {
  using Params = W8A8LinearParams;
  using X = Rows;
  using Sum = int;
  static constexpr int kChannelTiles = kTiles, kStageK = cuda::kStageBytes;
  static constexpr bool kStrided = false;

  uint32_t a[kTiles][4];

  __device__ Int8(const Params&, int) {}

  template <bool kAhead>
  __device__ void prefetch(int) {}

  template <bool>
  __device__ void fragments(const cuda::Slot& slot, int chunk, int) {
    const int t = threadIdx.x % 4;
    const unsigned char* granule = slot.granule(chunk * 2 + t / 2) + t % 2 * 8;
#pragma unroll
    for (int h = 0; h < 2 * kTiles; ++h) {
      const uint2 bytes = *reinterpret_cast<const uint2*>(granule + h * cuda::kChannelStep);
      a[h / 2][h % 2] = PYSPEC_PLANTED(12) ? bytes.y : bytes.x;
      a[h / 2][h % 2 + 2] = PYSPEC_PLANTED(12) ? bytes.x : bytes.y;
    }
  }

  template <int kRowTiles>
  __device__ void multiply(const typename X::Words& x, int (&sums)[kTiles][kRowTiles][4], int r) {
#pragma unroll
    for (int ct = 0; ct < kTiles; ++ct) cuda::mma_s8(sums[ct][r], a[ct], x.x, x.y);
  }

  static __device__ void store(const Params& p, int64_t m, int64_t n, int sum) {
    const float value = PYSPEC_PLANTED(11) ? float(sum) * (p.w_scale[n] * p.x_scale[m])
                                           : float(sum) * p.w_scale[n] * p.x_scale[m];
    const int64_t i = m * p.N + n;
    if (p.out_dtype == DType::kF32) {
      static_cast<float*>(p.out)[i] = value;
    } else if (p.out_dtype == DType::kBF16) {
      static_cast<__nv_bfloat16*>(p.out)[i] =
          PYSPEC_PLANTED(13) ? __float2bfloat16_rz(value) : __float2bfloat16_rn(value);
    } else {
      static_cast<__half*>(p.out)[i] = __float2half_rn(value);
    }
  }
};

}  // namespace

void w8a8_linear_cuda(const W8A8LinearParams& p, void* stream) {
  const cuda::WeightRows rows(p.weight, p.N, p.weight_stride_n, p.K);
  cuda::run_linear_tile<Int8, Int8Rows>(p, rows, stream);
}

}  // namespace pyspec
