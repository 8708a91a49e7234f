// SPDX-License-Identifier: Apache-2.0
// What the CUDA kernels of rows share: four consecutive floats at a time. No torch.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"

namespace pyspec::cuda {

constexpr int64_t kMaxBlocks = 0x7fffffff;  // of a grid's x dimension; kernels loop over what is beyond

// A grid of rows, each in parts of `block_columns` columns: x is the row (2^31 of them would not fit a GPU),
// y the part. 64-bit divisions, which one dimension would need, are calls of some 100 instructions.
inline dim3 grid_of(int64_t rows, int64_t columns, int64_t block_columns) {
  return dim3(unsigned(rows), unsigned((columns + block_columns - 1) / block_columns));
}

// Elements [0, 4) at p, as one 16-byte access or, where rows are not aligned to it, one by one; `left`
// elements exist, the others read as 0. A thread gets the same elements either way, so that sums do not
// depend on alignment.
template <bool kVector>
__device__ inline float4 load4(const float* p, int64_t left) {
  if constexpr (kVector) return *reinterpret_cast<const float4*>(p);
  return {p[0], left > 1 ? p[1] : 0.0f, left > 2 ? p[2] : 0.0f, left > 3 ? p[3] : 0.0f};
}

// A wide store is an intrinsic: nvcc 13.0 makes four of a plain one whose parts are computed one after the
// other.
template <bool kVector>
__device__ inline void store4(float* p, float4 v, int64_t left) {
  if constexpr (kVector) {
    __stcg(reinterpret_cast<float4*>(p), v);
  } else {
    p[0] = v.x;
    if (left > 1) p[1] = v.y;
    if (left > 2) p[2] = v.z;
    if (left > 3) p[3] = v.w;
  }
}

// Whether every row of a matrix begins at a multiple of 16 bytes (null: there is no such matrix).
inline bool aligned16(const float* p, int64_t stride = 0) {
  return reinterpret_cast<uintptr_t>(p) % 16 == 0 && stride % 4 == 0;
}

}  // namespace pyspec::cuda
