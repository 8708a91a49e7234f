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

}  // namespace pyspec
