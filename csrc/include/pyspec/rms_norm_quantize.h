// SPDX-License-Identifier: Apache-2.0
// rms_norm_quantize: launch interface. Spec: pyspec/spec/rms_norm_quantize.py.
#pragma once

#include <cstdint>

namespace pyspec {

struct RmsNormQuantizeParams {
  const float* x;       // [M, K], row stride x_stride_m
  float* residual;      // [M, K] contiguous or null: residual += x, and the sum is normalised
  const float* weight;  // [K]
  int8_t* q;            // [M, K] contiguous, aligned to 4
  float* scale;         // [M]
  int64_t M, K;
  int64_t x_stride_m;
  float eps;
};

void rms_norm_quantize_cuda(const RmsNormQuantizeParams& p, void* stream);  // a cudaStream_t

}  // namespace pyspec
