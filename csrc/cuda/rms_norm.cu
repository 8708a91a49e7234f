// SPDX-License-Identifier: Apache-2.0
// CUDA rms_norm and add_rms_norm, sm_80 and newer. One block is one row: see rms_norm.cuh. Run on an emulator
// only: neither checked nor timed on a GPU yet.
//
// Planted bugs, 1 and 2 in rms_norm.cuh: 1 no barrier before the warps' sums are read; 2 the sum
// is not written back; 3 the mean over four elements too many.
#include "cuda/rms_norm.cuh"
#include "pyspec/rms_norm.h"

namespace pyspec {
namespace {

template <bool kVector>
__global__ void __launch_bounds__(cuda::kNormThreads) norm_rows(const RmsNormParams p) {
  PYSPEC_DYNAMIC_SHARED(smem);
  const int64_t m = blockIdx.x;
  cuda::NormRow<kVector> row(p.x + m * p.x_stride_m, p.residual ? p.residual + m * p.K : nullptr, p.weight,
                             p.K);
  row.normalise(PYSPEC_PLANTED(3) ? p.K + 4 : p.K, p.eps, reinterpret_cast<float*>(smem));
  row.for_each([&](int64_t k, float4 y) { cuda::store4<kVector>(p.out + m * p.K + k, y, p.K - k); });
}

}  // namespace

void rms_norm_cuda(const RmsNormParams& p, void* stream) {
  if (p.M == 0 || p.K == 0) return;
  const bool vector = p.K % 4 == 0 && cuda::aligned16(p.x, p.x_stride_m) && cuda::aligned16(p.residual) &&
                      cuda::aligned16(p.weight) && cuda::aligned16(p.out);
  const auto kernel = vector ? norm_rows<true> : norm_rows<false>;
  PYSPEC_LAUNCH(kernel, unsigned(p.M), cuda::norm_threads(p.K), cuda::norm_smem_bytes(p.K), stream, p);
}

}  // namespace pyspec
