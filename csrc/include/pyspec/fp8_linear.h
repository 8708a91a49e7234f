// SPDX-License-Identifier: Apache-2.0
// fp8_linear: launch interface. Spec: pyspec/spec/fp8_linear.py.
#pragma once

#include "pyspec/dtype.h"

namespace pyspec {

struct Fp8LinearParams {
  const void* x;          // [M, K] of x_dtype (f32 or bf16), rows as bind/rows.h pads them to 32 k
  const uint8_t* weight;  // [N, K] e4m3, row stride weight_stride_n
  const float* scale;     // that of channel n and k: scale[(n >> shift_n) * scale_stride_n + (k >> shift_k)]
  float* out;             // [M, N]
  int64_t M, N, K;
  int64_t x_stride_m, weight_stride_n, scale_stride_n;
  int shift_n, shift_k;  // 0: one each, 7: 128 share a scale, 31: all do
  DType x_dtype;
};

void fp8_linear_cuda(const Fp8LinearParams& p, void* stream);

}  // namespace pyspec
