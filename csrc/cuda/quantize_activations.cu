// SPDX-License-Identifier: Apache-2.0
// CUDA quantize_activations, sm_80 and newer. Eight neighbouring threads are one group of 32, four elements
// each: the largest magnitude and the sums of both halves go through shuffles. One block is a part of one
// row.
//
// Planted bugs: 1 the largest magnitude of half a group; 2 NaN is not seen; 3 sums of groups,
// not of halves; 4 rounded towards zero.
#include "cuda/elements.cuh"
#include "cuda/row.cuh"
#include "pyspec/quantize_activations.h"

namespace pyspec {
namespace {

constexpr int kThreads = 128, kLanes = int(kGroup) / 4;  // that share a group
constexpr int64_t kColumns = 4 * kThreads;

__device__ inline int rounded(float x) { return int(PYSPEC_PLANTED(4) ? truncf(x) : rintf(x)); }

template <bool kVector>
__global__ void __launch_bounds__(kThreads) quantise_groups(const QuantizedRowsParams p) {
  const int lane = threadIdx.x % kLanes;
  const int64_t k = blockIdx.y * kColumns + 4 * threadIdx.x;
  const bool inside = k < p.K;
  const int64_t m = blockIdx.x;
  float4 v = {};
  if (inside) v = cuda::load4<kVector>(p.x + m * p.x_stride_m + k, p.K - k);
  uint32_t most = max(max(cuda::magnitude_bits(v.x), cuda::magnitude_bits(v.y)),
                      max(cuda::magnitude_bits(v.z), cuda::magnitude_bits(v.w)));
  if (PYSPEC_PLANTED(2) && most > cuda::kInfinityBits) most = 0;
  for (int step = kLanes / (PYSPEC_PLANTED(1) ? 4 : 2); step > 0; step /= 2)
    most = max(most, __shfl_xor_sync(0xffffffffu, most, step));
  const float scale = cuda::quantised_scale(most, 127.0f);
  const float inverse = scale > 0.0f ? 127.0f / __uint_as_float(most) : 0.0f;
  int q[4] = {};
  if (scale > 0.0f) q[0] = rounded(v.x * inverse), q[1] = rounded(v.y * inverse);
  if (scale > 0.0f) q[2] = rounded(v.z * inverse), q[3] = rounded(v.w * inverse);
  int sum = q[0] + q[1] + q[2] + q[3];
  for (int step = kLanes / (PYSPEC_PLANTED(3) ? 2 : 4); step > 0; step /= 2)
    sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (!inside) return;
  __stcg(reinterpret_cast<char4*>(p.q + m * p.K + k),
         char4{int8_t(q[0]), int8_t(q[1]), int8_t(q[2]), int8_t(q[3])});
  const int64_t group = (m * p.K + k) / kGroup;
  if (lane == 0) p.scale[group] = scale;
  if (lane % (kLanes / 2) == 0) p.sums[2 * group + lane / (kLanes / 2)] = sum;
}

}  // namespace

void quantize_activations_cuda(const QuantizedRowsParams& p, void* stream) {
  if (p.M * p.K == 0) return;
  const auto kernel = cuda::aligned16(p.x, p.x_stride_m) ? quantise_groups<true> : quantise_groups<false>;
  PYSPEC_LAUNCH(kernel, cuda::grid_of(p.M, p.K, kColumns), kThreads, 0, stream, p);
}

}  // namespace pyspec
