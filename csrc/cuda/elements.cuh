// SPDX-License-Identifier: Apache-2.0
// Elements of activations and of the KV cache as f32, one or four neighbours at a time. Four f32 are one
// access of 16 bytes, four of 16 bits one of 8, four of 8 bits one of 4: a warp's accesses are whole sectors
// either way.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "cuda/ptx.cuh"
#include "pyspec/dtype.h"

namespace pyspec::cuda {

// The dtype is the same for a whole launch: a branch on it costs less than a kernel for each pair of dtypes.
__device__ inline float widen_16(uint16_t bits, DType dtype) {
  if (dtype == DType::kBF16) return __uint_as_float(uint32_t(bits) << 16);
  return __half2float(__ushort_as_half(bits));
}
__device__ inline uint16_t narrow_16(float x, DType dtype) {
  if (dtype == DType::kBF16) return __bfloat16_as_ushort(__float2bfloat16_rn(x));
  return __half_as_ushort(__float2half_rn(x));
}

// Elements [i, i + kWidth) of `base`, which has f32, bf16 or f16.
template <int kWidth>
__device__ inline void load_as(const void* base, int64_t i, DType dtype, float* x) {
  static_assert(kWidth == 1 || kWidth == 4);
  if (dtype == DType::kF32) {
    const float* p = static_cast<const float*>(base) + i;
    if constexpr (kWidth == 1) {
      x[0] = *p;
    } else {
      const float4 v = *reinterpret_cast<const float4*>(p);
      x[0] = v.x, x[1] = v.y, x[2] = v.z, x[3] = v.w;
    }
  } else {
    const uint16_t* p = static_cast<const uint16_t*>(base) + i;
    if constexpr (kWidth == 1) {
      x[0] = widen_16(*p, dtype);
    } else {
      const ushort4 v = *reinterpret_cast<const ushort4*>(p);
      x[0] = widen_16(v.x, dtype), x[1] = widen_16(v.y, dtype);
      x[2] = widen_16(v.z, dtype), x[3] = widen_16(v.w, dtype);
    }
  }
}

// A wide store is an intrinsic: nvcc 13.0 makes four of a plain one whose parts are computed one after the
// other.
template <int kWidth>
__device__ inline void store_as(void* base, int64_t i, DType dtype, const float* x) {
  static_assert(kWidth == 1 || kWidth == 4);
  if (dtype == DType::kF32) {
    float* p = static_cast<float*>(base) + i;
    if constexpr (kWidth == 1) {
      *p = x[0];
    } else {
      __stcg(reinterpret_cast<float4*>(p), float4{x[0], x[1], x[2], x[3]});
    }
  } else {
    uint16_t* p = static_cast<uint16_t*>(base) + i;
    if constexpr (kWidth == 1) {
      *p = narrow_16(x[0], dtype);
    } else {
      __stcg(reinterpret_cast<ushort4*>(p), ushort4{narrow_16(x[0], dtype), narrow_16(x[1], dtype),
                                                    narrow_16(x[2], dtype), narrow_16(x[3], dtype)});
    }
  }
}

// Quantisation of a row to i8 or f8 (e4m3), bit for bit that of pyspec/spec/append_kv.py. The largest
// magnitude is found on the bits: as integers those of magnitudes are in order, and NaN is the largest.
constexpr uint32_t kInfinityBits = 0x7f800000u;
constexpr float kTiny = 1e-30f;  // rows below are zeros: scales stay normal numbers

__device__ inline uint32_t magnitude_bits(float x) { return __float_as_uint(x) & 0x7fffffffu; }

__device__ inline float quantised_scale(uint32_t most, float largest) {
  if (most >= kInfinityBits) return __uint_as_float(0x7fc00000u);  // NaN
  return __uint_as_float(most) >= kTiny ? __uint_as_float(most) / largest : 0.0f;
}

__device__ inline uint8_t quantised(float x, float scale, DType dtype) {
  const float value = scale > 0.0f ? x / scale : 0.0f;
  if (dtype == DType::kI8) return uint8_t(int8_t(rintf(value)));
  return __nv_cvt_float_to_fp8(value, __NV_SATFINITE, __NV_E4M3);
}

template <int kWidth>
__device__ inline void store_quantised(void* base, int64_t i, DType dtype, const float* x, float scale) {
  uint8_t* p = static_cast<uint8_t*>(base) + i;
  if constexpr (kWidth == 1) {
    *p = quantised(x[0], scale, dtype);
  } else {
    __stcg(reinterpret_cast<uchar4*>(p),
           uchar4{quantised(x[0], scale, dtype), quantised(x[1], scale, dtype), quantised(x[2], scale, dtype),
                  quantised(x[3], scale, dtype)});
  }
}

// Whether a matrix of elements of `size` bytes whose rows lie `stride` elements apart can be accessed by
// fours.
inline bool by_fours(const void* data, int64_t size, int64_t stride = 0) {
  return reinterpret_cast<uintptr_t>(data) % uintptr_t(4 * size) == 0 && stride % 4 == 0;
}

}  // namespace pyspec::cuda
