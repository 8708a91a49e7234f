// SPDX-License-Identifier: Apache-2.0
// pack_int8_weight: launch interface. Spec: pyspec/spec/pack_int8_weight.py; layout: pyspec/w8a8_linear.h.
#pragma once

#include "pyspec/w8a8_linear.h"

namespace pyspec {

struct PackInt8WeightParams {
  const int8_t* weight;  // [N, K], row stride weight_stride_n
  uint8_t* packed;       // ceil(N / 16) blocks of packed_int8_block_bytes(K)
  int64_t N, K;
  int64_t weight_stride_n;
};

void pack_int8_weight_cpu(const PackInt8WeightParams& p);

}  // namespace pyspec
