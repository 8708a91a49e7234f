// SPDX-License-Identifier: Apache-2.0
// pack_quant_weight: launch interface. Spec: pyspec/spec/pack_quant_weight.py.
#pragma once

#include "pyspec/quant_format.h"

namespace pyspec {

struct PackQuantWeightParams {
  const uint8_t* weight;  // [N, gguf_row_bytes(format, K)]
  uint8_t* packed;        // packed_bytes(format, N, K), aligned to 64
  QuantFormat format;
  int64_t N, K;
};

void pack_quant_weight_cpu(const PackQuantWeightParams& p);

}  // namespace pyspec
