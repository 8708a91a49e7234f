// SPDX-License-Identifier: Apache-2.0
// CUDA embedding, sm_80 and newer. One block is a part of one row, one thread four of its columns. Bit-exact:
// denormals too, which GPUs do not flush.
//
// Planted bugs: 1 the row of the token's index; 2 the scale is dropped; 3 the last column stays
// unwritten where rows are odd.
#include "cuda/elements.cuh"
#include "cuda/row.cuh"
#include "pyspec/embedding.h"

namespace pyspec {
namespace {

constexpr int kThreads = 128;

template <int kWidth>
__global__ void __launch_bounds__(kThreads) copy_rows(const EmbeddingParams p) {
  constexpr int64_t kColumns = kWidth * kThreads;
  const int64_t K = p.K - (PYSPEC_PLANTED(3) && kWidth == 1 ? 1 : 0);
  const int64_t k = blockIdx.y * kColumns + kWidth * threadIdx.x;
  if (k >= K) return;
  const int64_t t = blockIdx.x;
  const int64_t id = PYSPEC_PLANTED(1) ? t : p.ids[t];
  float x[kWidth];
  cuda::load_as<kWidth>(p.weight, id * p.weight_stride_v + k, p.dtype, x);
#pragma unroll
  for (int i = 0; i < kWidth; ++i)
    if (!PYSPEC_PLANTED(2)) x[i] *= p.scale;
  cuda::store_as<kWidth>(p.out, t * p.out_stride_t + k, DType::kF32, x);
}

}  // namespace

void embedding_cuda(const EmbeddingParams& p, void* stream) {
  if (p.T * p.K == 0) return;
  const bool fours = p.K % 4 == 0 && cuda::by_fours(p.weight, size_of(p.dtype), p.weight_stride_v) &&
                     cuda::by_fours(p.out, sizeof(float), p.out_stride_t);
  const auto kernel = fours ? copy_rows<4> : copy_rows<1>;
  PYSPEC_LAUNCH(kernel, cuda::grid_of(p.T, p.K, (fours ? 4 : 1) * kThreads), kThreads, 0, stream, p);
}

}  // namespace pyspec
