// SPDX-License-Identifier: Apache-2.0
// CUDA rms_norm and add_rms_norm, sm_80 and newer. One block is one row: thread t sums the squares of k = 4 t
// .. 4 t + 3, then 4 (t + threads) .., in ascending order; a warp's lanes are added in a butterfly, the warps
// in ascending order. The number of threads depends on K alone, and so does the order of the sum: rows are
// independent. Run on an emulator only: neither checked nor timed on a GPU yet.
#include <algorithm>

#include "cuda/row.cuh"
#include "pyspec/rms_norm.h"

namespace pyspec {
namespace {

constexpr int kWarp = 32, kMaxThreads = 512;  // 512 x 4 elements: a row of K = 2048 is one pass

int num_threads(int64_t K) {
  const int64_t quads = (K + 3) / 4;
  return int(std::min<int64_t>(kMaxThreads, (quads + kWarp - 1) / kWarp * kWarp));
}

// The sum over the block, the same bits in every thread.
__device__ float block_sum(float sum, float* partial) {
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  if (threadIdx.x % kWarp == 0) partial[threadIdx.x / kWarp] = sum;
  __syncthreads();
  const int warps = int(blockDim.x) / kWarp;
  float total = 0.0f;
  for (int warp = 0; warp < warps; ++warp) total += partial[warp];
  __syncthreads();  // the next row writes partial again
  return total;
}

template <bool kVector>
__global__ void __launch_bounds__(kMaxThreads) norm_rows(const RmsNormParams p) {
  PYSPEC_DYNAMIC_SHARED(smem);
  float* partial = reinterpret_cast<float*>(smem);  // one sum a warp
  const int64_t first = 4 * int64_t(threadIdx.x), step = 4 * int64_t(blockDim.x);
  for (int64_t m = blockIdx.x; m < p.M; m += gridDim.x) {
    const float* x = p.x + m * p.x_stride_m;
    float* residual = p.residual ? p.residual + m * p.K : nullptr;
    float* out = p.out + m * p.K;
    float sum = 0.0f;
    for (int64_t k = first; k < p.K; k += step) {
      float4 v = cuda::load4<kVector>(x + k, p.K - k);
      if (residual) {
        const float4 r = cuda::load4<kVector>(residual + k, p.K - k);
        v = {r.x + v.x, r.y + v.y, r.z + v.z, r.w + v.w};
        cuda::store4<kVector>(residual + k, v, p.K - k);
      }
      sum = fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum))));
    }
    const float scale = 1.0f / sqrtf(block_sum(sum, partial) / float(p.K) + p.eps);
    const float* row = residual ? residual : x;  // a thread reads again what it read or wrote, from L1 or L2
    for (int64_t k = first; k < p.K; k += step) {
      const float4 v = cuda::load4<kVector>(row + k, p.K - k);
      const float4 w = cuda::load4<kVector>(p.weight + k, p.K - k);
      cuda::store4<kVector>(
          out + k, {v.x * scale * w.x, v.y * scale * w.y, v.z * scale * w.z, v.w * scale * w.w}, p.K - k);
    }
  }
}

}  // namespace

void rms_norm_cuda(const RmsNormParams& p, void* stream) {
  if (p.M == 0 || p.K == 0) return;
  const bool vector = p.K % 4 == 0 && cuda::aligned16(p.x, p.x_stride_m) && cuda::aligned16(p.residual) &&
                      cuda::aligned16(p.weight) && cuda::aligned16(p.out);
  const auto kernel = vector ? norm_rows<true> : norm_rows<false>;
  const int threads = num_threads(p.K);
  PYSPEC_LAUNCH(kernel, unsigned(std::min(p.M, cuda::kMaxBlocks)), threads, threads / kWarp * sizeof(float),
                stream, p);
}

}  // namespace pyspec
