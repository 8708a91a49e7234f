// SPDX-License-Identifier: Apache-2.0
// Activations to int8 with a scale per row and group of 32, once for all the products that share them: launch
// interface. Formula: pyspec/spec/quant_linear.py.
#pragma once

#include "pyspec/quant_format.h"

namespace pyspec {

struct QuantizeActivationsParams {
  const float* x;   // [M, K], row stride x_stride_m; K a multiple of 32
  void* workspace;  // activation_bytes(M, K), aligned to 64
  int64_t M, K;
  int64_t x_stride_m;
};

void quantize_activations_cpu(const QuantizeActivationsParams& p);

// The op's own results: what the CUDA kernels of quantised products take.
struct QuantizedRowsParams {
  const float* x;  // [M, K], row stride x_stride_m; K a multiple of 32
  int8_t* q;       // [M, K], aligned to 4
  float* scale;    // [M, K/32]
  int32_t* sums;   // [M, K/32, 2]
  int64_t M, K;
  int64_t x_stride_m;
};

void quantize_activations_cuda(const QuantizedRowsParams& p, void* stream);  // a cudaStream_t

}  // namespace pyspec
