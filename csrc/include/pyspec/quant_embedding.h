// SPDX-License-Identifier: Apache-2.0
// quant_embedding: launch interface. Spec: pyspec/spec/quant_embedding.py.
#pragma once

#include "pyspec/quant_format.h"

namespace pyspec {

struct QuantEmbeddingParams {
  const int32_t* ids;  // [T], each in [0, N): checked by the caller
  const uint8_t*
      weight;  // as in QuantLinearParams: one packed copy serves the LM head too; rows aligned to 2
  float* out;  // [T, K], row stride out_stride_t; rows aligned to 16 bytes on GPUs
  QuantFormat format;
  bool packed;
  int64_t T, K;
  int64_t out_stride_t;
  float scale;
};

void quant_embedding_cpu(const QuantEmbeddingParams& p);
void quant_embedding_cuda(const QuantEmbeddingParams& p, void* stream);  // a cudaStream_t; GGUF rows alone

}  // namespace pyspec
