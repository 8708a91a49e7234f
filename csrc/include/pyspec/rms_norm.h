// SPDX-License-Identifier: Apache-2.0
// rms_norm and add_rms_norm: launch interface. Spec: pyspec/spec/rms_norm.py, add_rms_norm.py.
#pragma once

#include <cstdint>

namespace pyspec {

struct RmsNormParams {
  const float* x;       // [M, K], row stride x_stride_m
  float* residual;      // [M, K] contiguous or null: residual += x, and the sum is normalised
  const float* weight;  // [K]
  float* out;           // [M, K] contiguous
  int64_t M, K;
  int64_t x_stride_m;
  float eps;
  // On the CPU alone: if not null, rows are quantised there as quantize_activations_cpu does (K a multiple of
  // 32), and out is not written.
  void* workspace = nullptr;
};

void rms_norm_cpu(const RmsNormParams& p);
void rms_norm_cuda(const RmsNormParams& p, void* stream);  // a cudaStream_t

}  // namespace pyspec
