// SPDX-License-Identifier: Apache-2.0
// w4a16_linear: launch interface. Spec: pyspec/spec/w4a16_linear.py.
#pragma once

#include "pyspec/linear.h"  // packed blocks

namespace pyspec {

struct W4A16LinearParams {
  const void* x;           // [M, K] of x_dtype, row stride x_stride_m
  const uint8_t* qweight;  // [N, K/2]: low nibble k even, high nibble k odd
  const void* scales;      // [N, J] of `dtype`
  const void* zeros;       // [N, J] of `dtype`, or null: 8
  const int32_t* g_idx;    // [K] group of each k, in [0, J), or null: k / group_size
  float* out;              // [M, N]
  DType dtype;             // of scales and zeros
  int64_t M, N, K, J, group_size;
  int64_t x_stride_m;
  DType x_dtype = DType::kF32;  // on GPUs bf16 as well, and there rows are as bind/rows.h pads them to 32 k
};

void w4a16_linear_cpu(const W4A16LinearParams& p);
void w4a16_linear_cuda(const W4A16LinearParams& p, void* stream);

}  // namespace pyspec
