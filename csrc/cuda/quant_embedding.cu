// SPDX-License-Identifier: Apache-2.0
// CUDA quant_embedding of GGUF rows (gguf.cuh), sm_80 and newer. One block is one token, a thread four
// neighbouring values of a group of 32 at a time. K-quants first find the row's largest scale or minimum, for
// the power of two that the ops round scales at. Bit-exact.
//
// Planted bugs, besides those of gguf.cuh: 1 no barrier before a warp's maximum is read; 2 the
// row's largest scale without the minima; 3 the minimum is dropped.
#include "cuda/elements.cuh"
#include "cuda/gguf.cuh"
#include "cuda/row.cuh"
#include "pyspec/quant_embedding.h"

namespace pyspec {
namespace {

using cuda::kWarp;

constexpr int kThreads = 256;

template <QuantFormat kFormat>
constexpr QuantFormatInfo kInfo = info(kFormat);

// The largest magnitude of a row's scales and minima, in every thread.
template <QuantFormat kFormat>
__device__ uint32_t most_of_row(const uint8_t* row, int64_t K, uint32_t* of_warp) {
  constexpr int kGroups = kFormat == QuantFormat::kQ6_K ? 16 : 8;
  uint32_t most = 0;
  for (int64_t i = threadIdx.x; i < K / 256 * kGroups; i += kThreads) {
    const cuda::GroupScale s =
        cuda::exact_scale<kFormat>(row + i / kGroups * kInfo<kFormat>.block_bytes, int(i % kGroups));
    most = max(most, cuda::magnitude_bits(s.d));
    if (!PYSPEC_PLANTED(2)) most = max(most, cuda::magnitude_bits(s.min));
  }
  for (int step = kWarp / 2; step > 0; step /= 2) most = max(most, __shfl_xor_sync(0xffffffffu, most, step));
  if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = most;
  if (!PYSPEC_PLANTED(1)) __syncthreads();
  for (int warp = 0; warp < kThreads / kWarp; ++warp) most = max(most, of_warp[warp]);
  return most;
}

// Exponent of the power of two that brings the largest scale or minimum into [2^13, 2^14); 0 if there is
// none.
__device__ inline int row_exponent(uint32_t most) {
  return most == 0 || most >= cuda::kInfinityBits ? 0 : int(most >> 23) - 126 - 14;
}
__device__ inline float power_of_two(int exponent) { return __uint_as_float(uint32_t(exponent + 127) << 23); }
__device__ inline float as_half(float x) { return __half2float(__float2half_rn(x)); }

template <QuantFormat kFormat>
__global__ void __launch_bounds__(kThreads) dequantise_rows(const QuantEmbeddingParams p) {
  constexpr int kScaleK = kInfo<kFormat>.half_groups ? 16 : 32;
  PYSPEC_DYNAMIC_SHARED(smem);
  const int64_t t = blockIdx.x;
  const uint8_t* row = p.weight + p.ids[t] * (p.K / kInfo<kFormat>.block_k * kInfo<kFormat>.block_bytes);
  int exponent = 0;
  if constexpr (kInfo<kFormat>.block_k == 256)
    exponent = row_exponent(most_of_row<kFormat>(row, p.K, reinterpret_cast<uint32_t*>(smem)));
  const float multiplier = power_of_two(exponent), inverse = power_of_two(-exponent);
  for (int64_t k = 4 * threadIdx.x; k < p.K; k += 4 * kThreads) {
    const uint8_t* block = row + k / kInfo<kFormat>.block_k * kInfo<kFormat>.block_bytes;
    const int i = int(k % kInfo<kFormat>.block_k);
    cuda::GroupScale s = cuda::exact_scale<kFormat>(block, i / kScaleK);
    if constexpr (kInfo<kFormat>.block_k == 256) s = {as_half(s.d * inverse), as_half(s.min * inverse)};
    if (PYSPEC_PLANTED(3)) s.min = 0.0f;
    const uint32_t q = cuda::read_values<kFormat>(block, i);
    float x[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) x[j] = (float(int8_t(q >> (8 * j))) * s.d + s.min) * multiplier * p.scale;
    cuda::store_as<4>(p.out, t * p.out_stride_t + k, DType::kF32, x);
  }
}

template <QuantFormat kFormat>
void launch_rows(const QuantEmbeddingParams& p, void* stream) {
  constexpr size_t kSmemBytes = kInfo<kFormat>.block_k == 256 ? kThreads / kWarp * sizeof(uint32_t) : 0;
  PYSPEC_LAUNCH((dequantise_rows<kFormat>), unsigned(p.T), kThreads, kSmemBytes, stream, p);
}

}  // namespace

void quant_embedding_cuda(const QuantEmbeddingParams& p, void* stream) {
  if (p.T * p.K == 0) return;
  switch (p.format) {
    case QuantFormat::kQ4_0:
      return launch_rows<QuantFormat::kQ4_0>(p, stream);
    case QuantFormat::kQ4_1:
      return launch_rows<QuantFormat::kQ4_1>(p, stream);
    case QuantFormat::kQ5_0:
      return launch_rows<QuantFormat::kQ5_0>(p, stream);
    case QuantFormat::kQ8_0:
      return launch_rows<QuantFormat::kQ8_0>(p, stream);
    case QuantFormat::kQ4_K:
      return launch_rows<QuantFormat::kQ4_K>(p, stream);
    case QuantFormat::kQ6_K:
      return launch_rows<QuantFormat::kQ6_K>(p, stream);
  }
}

}  // namespace pyspec
