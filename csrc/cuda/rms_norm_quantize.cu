// SPDX-License-Identifier: Apache-2.0
// CUDA rms_norm_quantize, sm_80 and newer. One block is one row, normalised as in rms_norm (see rms_norm.cuh)
// and quantised from registers, after its largest magnitude is known.
//
// Planted bugs, 1 and 2 in rms_norm.cuh: 1 no barrier before the warps' sums are read; 2 the sum
// is not written back; 3 both reductions in the same shared memory; 4 one element of four does not count for
// the largest magnitude; 5 rows share a scale.
#include "cuda/rms_norm.cuh"
#include "pyspec/rms_norm_quantize.h"

namespace pyspec {
namespace {

template <bool kVector>
__global__ void __launch_bounds__(cuda::kNormThreads) quantise_rows(const RmsNormQuantizeParams p) {
  PYSPEC_DYNAMIC_SHARED(smem);
  const int64_t m = blockIdx.x;
  cuda::NormRow<kVector> row(p.x + m * p.x_stride_m, p.residual ? p.residual + m * p.K : nullptr, p.weight,
                             p.K);
  row.normalise(p.K, p.eps, reinterpret_cast<float*>(smem));
  uint32_t most = 0;
  row.for_each([&](int64_t, float4 y) {
    most = max(max(most, max(cuda::magnitude_bits(y.x), cuda::magnitude_bits(y.y))),
               max(cuda::magnitude_bits(y.z), PYSPEC_PLANTED(4) ? 0 : cuda::magnitude_bits(y.w)));
  });
  uint32_t* smem_most =
      reinterpret_cast<uint32_t*>(smem) + (PYSPEC_PLANTED(3) ? 0 : blockDim.x / cuda::kWarp);
  most = cuda::block_reduce(most, smem_most, [](uint32_t a, uint32_t b) { return max(a, b); });
  const float scale = cuda::quantised_scale(most, 127.0f);
  if (threadIdx.x == 0) p.scale[PYSPEC_PLANTED(5) ? 0 : m] = scale;
  row.for_each([&](int64_t k, float4 y) {
    const float four[4] = {y.x, y.y, y.z, y.w};
    if constexpr (kVector) {
      cuda::store_quantised<4>(p.q, m * p.K + k, DType::kI8, four, scale);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i)
        if (k + i < p.K) cuda::store_quantised<1>(p.q, m * p.K + k + i, DType::kI8, four + i, scale);
    }
  });
}

}  // namespace

void rms_norm_quantize_cuda(const RmsNormQuantizeParams& p, void* stream) {
  if (p.M == 0) return;
  const bool vector = p.K % 4 == 0 && cuda::aligned16(p.x, p.x_stride_m) && cuda::aligned16(p.residual) &&
                      cuda::aligned16(p.weight);
  const auto kernel = vector ? quantise_rows<true> : quantise_rows<false>;
  PYSPEC_LAUNCH(kernel, unsigned(p.M), cuda::norm_threads(p.K), 2 * cuda::norm_smem_bytes(p.K), stream, p);
}

}  // namespace pyspec
