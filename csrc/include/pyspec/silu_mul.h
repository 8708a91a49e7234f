// SPDX-License-Identifier: Apache-2.0
// silu_mul and gelu_mul: launch interface. Spec: pyspec/spec/silu_mul.py, gelu_mul.py.
#pragma once

#include <cstdint>

namespace pyspec {

struct SiluMulParams {
  const float* gate_up;  // [M, 2 F], row stride gate_up_stride_m: gate, then up
  float* out;            // [M, F], row stride out_stride_m
  bool gelu;             // tanh approximation of GELU instead of SiLU
  int64_t M, F;
  int64_t gate_up_stride_m, out_stride_m;
  // On the CPU alone: if not null, rows are quantised there as quantize_activations_cpu does (F a multiple of
  // 32), and out is not written.
  void* workspace = nullptr;
};

void silu_mul_cpu(const SiluMulParams& p);
void silu_mul_cuda(const SiluMulParams& p, void* stream);  // a cudaStream_t

}  // namespace pyspec
