// SPDX-License-Identifier: Apache-2.0
// linear and linear_packed: launch interface. Spec: pyspec/spec/linear.py, linear_packed.py, pack_weight.py.
#pragma once

#include "pyspec/dtype.h"

namespace pyspec {

// A packed weight: blocks of 16 channels (N padded with zeros), K padded to even: f32 [N/16][K][16],
// bf16 [N/16][K/2][16][2], so that a line of 64 bytes is 16 channels x 1 or 2 k.
inline int64_t packed_block_elements(int64_t K) { return (K + 1) / 2 * 32; }
inline int64_t packed_weight_bytes(int64_t N, int64_t K, DType dtype) {
  return (N + 15) / 16 * packed_block_elements(K) * size_of(dtype);
}

struct LinearParams {
  const void* x;       // [M, K] of x_dtype, row stride x_stride_m
  const void* weight;  // f32 or bf16; packed (aligned to 64), or rows [N, K] with stride weight_stride_n
  const float* bias;   // [N] or null
  float* out;          // [M, N], row stride out_stride_m
  DType dtype;         // of weight
  bool packed;         // false packs every block on the fly: slow for few rows
  int64_t M, N, K;
  int64_t x_stride_m, weight_stride_n, out_stride_m;
  DType x_dtype = DType::kF32;  // on GPUs bf16 as well, and there rows are as bind/rows.h pads them to 32 k
};

void linear_cpu(const LinearParams& p);
void linear_cuda(const LinearParams& p, void* stream);  // rows only

}  // namespace pyspec
