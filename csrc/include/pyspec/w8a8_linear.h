// SPDX-License-Identifier: Apache-2.0
// w8a8_linear: launch interface. Spec: pyspec/spec/w8a8_linear.py.
#pragma once

#include "pyspec/dtype.h"

namespace pyspec {

struct W8A8LinearParams {
  const int8_t* x;       // [M, K], row stride x_stride_m
  const int8_t* weight;  // [N, K], row stride weight_stride_n
  const float* x_scale;  // [M]
  const float* w_scale;  // [N]
  void* out;             // [M, N] of out_dtype
  DType out_dtype;
  int64_t M, N, K;
  int64_t x_stride_m, weight_stride_n;
};

// On GPUs rows of x are as bind/rows.h pads them to 32 k.
void w8a8_linear_cpu(const W8A8LinearParams& p);
void w8a8_linear_cuda(const W8A8LinearParams& p, void* stream);

}  // namespace pyspec
