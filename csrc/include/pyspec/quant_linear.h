// SPDX-License-Identifier: Apache-2.0
// quant_linear: launch interface. Spec: pyspec/spec/quant_linear.py.
#pragma once

#include "pyspec/quant_format.h"

namespace pyspec {

struct QuantLinearParams {
  const void* activations;  // workspace filled by quantize_activations_cpu for the same M and K
  const uint8_t*
      weight;         // packed: packed_bytes(format, N, K), aligned to 64; else [N, gguf_row_bytes] GGUF rows
  const float* bias;  // [N] or null
  float* out;         // [M, N], row stride out_stride_m
  QuantFormat format;
  bool packed;  // false packs every block on the fly: slow for few rows
  int64_t M, N, K;
  int64_t out_stride_m;
};

void quant_linear_cpu(const QuantLinearParams& p);

// GGUF rows times the results of quantize_activations (QuantizedRowsParams): what GPUs take.
struct QuantRowsParams {
  const int8_t* x;        // [M, K], aligned to 4
  const float* x_scale;   // [M, K/32]
  const int32_t* x_sums;  // [M, K/32, 2]
  const uint8_t* weight;  // [N, gguf_row_bytes], aligned to 2
  const float* bias;      // [N] or null
  float* out;             // [M, N]
  QuantFormat format;
  int64_t M, N, K;
};

void quant_linear_cuda(const QuantRowsParams& p, void* stream);

}  // namespace pyspec
