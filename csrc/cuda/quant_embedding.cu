// SPDX-License-Identifier: Apache-2.0
// CUDA quant_embedding of GGUF rows, sm_80 and newer: the formats are in pyspec/spec/quant_formats.py. One
// block is one token, a thread four neighbouring values of a group of 32 at a time. Blocks have 18 .. 210
// bytes: rows are aligned to 2 bytes only, and read by twos. K-quants first find the row's largest scale or
// minimum, for the power of two that the ops round scales at. Bit-exact.
//
// Planted bugs (PYSPEC_BUG): 1 no barrier before a warp's maximum is read; 2 the row's largest scale without
// the minima; 3 the fifth bit of q5_0 one off; 4 high bits of q6_k of the other quarter; 5 the minimum is
// dropped.
#include "cuda/elements.cuh"
#include "cuda/row.cuh"
#include "pyspec/quant_embedding.h"

namespace pyspec {
namespace {

constexpr int kWarp = 32, kThreads = 256;

template <QuantFormat kFormat>
constexpr QuantFormatInfo kInfo = info(kFormat);

__device__ inline uint32_t read_16(const uint8_t* p) { return *reinterpret_cast<const uint16_t*>(p); }
__device__ inline uint32_t read_32(const uint8_t* p) { return read_16(p) | read_16(p + 2) << 16; }
__device__ inline float read_half(const uint8_t* p) {
  return __half2float(__ushort_as_half(uint16_t(read_16(p))));
}

struct Scale {
  float d, min;
};

// Scale and minimum of the group of 32 (of 16 in q6_k) with index j in a block, exactly.
template <QuantFormat kFormat>
__device__ inline Scale exact_scale(const uint8_t* block, int j) {
  if constexpr (kFormat == QuantFormat::kQ4_K) {  // 6-bit scales and minima in 12 bytes
    const uint8_t* s = block + 4;
    const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
    const int low = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
    return {read_half(block) * float(scale), -(read_half(block + 2) * float(low))};
  } else if constexpr (kFormat == QuantFormat::kQ6_K) {
    return {read_half(block + 208) * float(int8_t(block[192 + j])), 0.0f};
  } else {
    return {read_half(block), kFormat == QuantFormat::kQ4_1 ? read_half(block + 2) : 0.0f};
  }
}

// Values [k, k + 4) of a block, a byte each, the offset still in them.
template <QuantFormat kFormat>
__device__ inline uint32_t read_values(const uint8_t* block, int k) {
  constexpr uint32_t kNibbles = 0x0f0f0f0fu;
  if constexpr (kFormat == QuantFormat::kQ8_0) {
    return read_32(block + 2 + k) ^ 0x80808080u;  // as unsigned values with an offset of 128
  } else if constexpr (kFormat == QuantFormat::kQ4_K) {
    return read_32(block + 16 + k / 64 * 32 + k % 32) >> (k / 32 % 2 * 4) & kNibbles;
  } else if constexpr (kFormat ==
                       QuantFormat::kQ6_K) {  // halves of 128: 64 bytes of low nibbles, 32 of high pairs
    const int half = k / 128, i = k % 128, quarter = PYSPEC_PLANTED(4) ? 3 - i / 32 : i / 32;
    const uint32_t low = read_32(block + half * 64 + i % 64) >> (i / 64 * 4) & kNibbles;
    const uint32_t high = read_32(block + 128 + half * 32 + i % 32) >> (quarter * 2) & 0x03030303u;
    return low | high << 4;
  } else {  // value k low, value k + 16 high
    constexpr int kHead = kFormat == QuantFormat::kQ4_0 ? 2 : kFormat == QuantFormat::kQ4_1 ? 4 : 6;
    uint32_t q = read_32(block + kHead + k % 16) >> (k / 16 * 4) & kNibbles;
    if constexpr (kFormat == QuantFormat::kQ5_0) {
      const uint32_t fifth = read_32(block + 2) >> (PYSPEC_PLANTED(3) ? k + 1 : k);
#pragma unroll
      for (int i = 0; i < 4; ++i) q |= (fifth >> i & 1u) << (8 * i + 4);
    }
    return q;
  }
}

// The largest magnitude of a row's scales and minima, in every thread.
template <QuantFormat kFormat>
__device__ uint32_t most_of_row(const uint8_t* row, int64_t K, uint32_t* of_warp) {
  constexpr int kGroups = kFormat == QuantFormat::kQ6_K ? 16 : 8;
  uint32_t most = 0;
  for (int64_t i = threadIdx.x; i < K / 256 * kGroups; i += kThreads) {
    const Scale s = exact_scale<kFormat>(row + i / kGroups * kInfo<kFormat>.block_bytes, int(i % kGroups));
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
  constexpr int kScaleK = kInfo<kFormat>.half_groups ? 16 : 32,
                kOffset = kInfo<kFormat>.offset_shift < 0 ? 0 : 1 << kInfo<kFormat>.offset_shift;
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
    Scale s = exact_scale<kFormat>(block, i / kScaleK);
    if constexpr (kInfo<kFormat>.block_k == 256) s = {as_half(s.d * inverse), as_half(s.min * inverse)};
    if (PYSPEC_PLANTED(5)) s.min = 0.0f;
    const uint32_t q = read_values<kFormat>(block, i);
    float x[4];
#pragma unroll
    for (int j = 0; j < 4; ++j)
      x[j] = (float(int(q >> (8 * j) & 255u) - kOffset) * s.d + s.min) * multiplier * p.scale;
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
