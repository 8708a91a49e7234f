// SPDX-License-Identifier: Apache-2.0
// A row of rms_norm and its relatives, one block a row: thread t sums the squares of k = 4 t .. 4 t + 3, then
// 4 (t + threads) .., in ascending order; a warp's lanes are added in a butterfly, the warps in ascending
// order. The number of threads depends on K alone, and so does the order of the sum: rows are independent.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/row.cuh"

namespace pyspec::cuda {

constexpr int kNormThreads = 512;
constexpr int kHeld = 4;  // fours of a row that a thread keeps in registers: all of it up to K = 8192

constexpr int norm_threads(int64_t K) {
  const int64_t fours = (K + 3) / 4, threads = (fours + kWarp - 1) / kWarp * kWarp;
  return int(threads < kNormThreads ? threads : kNormThreads);
}
static_assert(norm_threads(1) == 32 && norm_threads(576) == 160 && norm_threads(4096) == 512);

// Shared memory of a reduction: a word a warp.
constexpr size_t norm_smem_bytes(int64_t K) { return size_t(norm_threads(K)) / kWarp * sizeof(uint32_t); }

// `value` of all threads, combined in one order: the same bits in every thread. `of_warp` is shared memory
// that the block uses for nothing else.
template <typename T, typename Combine>
__device__ T block_reduce(T value, T* of_warp, Combine combine) {
  for (int step = kWarp / 2; step > 0; step /= 2)
    value = combine(value, __shfl_xor_sync(0xffffffffu, value, step));
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
  if (!PYSPEC_PLANTED(1)) __syncthreads();
  T total = of_warp[0];
  for (int warp = 1; warp < int(blockDim.x) / kWarp; ++warp) total = combine(total, of_warp[warp]);
  return total;
}

// A row of x, or of residual + x, which is written back to residual (null: there is none), then normalised.
template <bool kVector>
class NormRow {
 public:
  __device__ NormRow(const float* x, float* residual, const float* weight, int64_t K)
      : x_(x), residual_(residual), weight_(weight), K_(K) {}

  // Reads x, and divides by the root of the mean square over `mean_over` elements. `of_warp`: see
  // block_reduce.
  __device__ void normalise(int64_t mean_over, float eps, float* of_warp) {
    const float sum = block_reduce(sum_of_squares(), of_warp, [](float a, float b) { return a + b; });
    scale_ = 1.0f / sqrtf(sum / float(mean_over) + eps);
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
      if (at(i) < K_) held_[i] = normalised(at(i), held_[i]);
  }

  // use(k, four normalised elements from k on) of this thread; those that are not held are read again, from
  // L1 or L2. Elements beyond the row are 0.
  template <typename Use>
  __device__ void for_each(Use use) const {
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
      if (at(i) < K_) use(at(i), held_[i]);
    const float* row = residual_ ? residual_ : x_;
    for (int64_t k = at(kHeld); k < K_; k += step()) use(k, normalised(k, load4<kVector>(row + k, K_ - k)));
  }

 private:
  __device__ static int64_t step() { return 4 * int64_t(blockDim.x); }
  __device__ static int64_t at(int i) { return 4 * int64_t(threadIdx.x) + i * step(); }

  __device__ float4 normalised(int64_t k, float4 v) const {
    const float4 w = load4<kVector>(weight_ + k, K_ - k);
    return {v.x * scale_ * w.x, v.y * scale_ * w.y, v.z * scale_ * w.z, v.w * scale_ * w.w};
  }

  __device__ float sum_of_squares() {
    float sum = 0.0f;
    const auto add = [&](int64_t k) {
      float4 v = load4<kVector>(x_ + k, K_ - k);
      if (residual_) {
        const float4 r = load4<kVector>(residual_ + k, K_ - k);
        v = {r.x + v.x, r.y + v.y, r.z + v.z, r.w + v.w};
        if (!PYSPEC_PLANTED(2)) store4<kVector>(residual_ + k, v, K_ - k);
      }
      sum = fmaf(v.w, v.w, fmaf(v.z, v.z, fmaf(v.y, v.y, fmaf(v.x, v.x, sum))));
      return v;
    };
#pragma unroll
    for (int i = 0; i < kHeld; ++i)
      if (at(i) < K_) held_[i] = add(at(i));
    for (int64_t k = at(kHeld); k < K_; k += step()) add(k);
    return sum;
  }

  const float* x_;
  float* residual_;
  const float* weight_;
  int64_t K_;
  float scale_;
  float4 held_[kHeld];
};

}  // namespace pyspec::cuda
