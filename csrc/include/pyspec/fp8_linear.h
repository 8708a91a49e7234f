// SPDX-License-Identifier: Apache-2.0
// fp8_linear: launch interface. Spec: pyspec/spec/fp8_linear.py.
#pragma once

#include "pyspec/dtype.h"

namespace pyspec {

struct Fp8LinearParams {
  const void* x;          // [M, K] of x_dtype (f32 or bf16), rows as bind/rows.h pads them to 32 k
  const uint8_t* weight;  // [N, K] e4m3, row stride weight_stride_n
  const float* scale;     // that of channel n and k: scale[n / scale_n * scale_stride_n + k / scale_k]
  float* out;             // [M, N]
  int64_t M, N, K;
  int64_t x_stride_m, weight_stride_n, scale_stride_n;
  int64_t scale_n, scale_k;  // channels and k that share a scale; 128, or so many that all do
  DType x_dtype;
};

void fp8_linear_cuda(const Fp8LinearParams& p, void* stream);

}  // namespace pyspec
