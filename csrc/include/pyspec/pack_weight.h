// SPDX-License-Identifier: Apache-2.0
// pack_weight: launch interface. Spec: pyspec/spec/pack_weight.py; layout: pyspec/linear.h.
#pragma once

#include "pyspec/linear.h"

namespace pyspec {

struct PackWeightParams {
  const void* weight;  // [N, K] of `dtype` (f32 or bf16), row stride weight_stride_n
  void* packed;        // packed_weight_bytes(N, K, dtype)
  DType dtype;
  int64_t N, K;
  int64_t weight_stride_n;
};

void pack_weight_cpu(const PackWeightParams& p);

}  // namespace pyspec
