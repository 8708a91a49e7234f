// SPDX-License-Identifier: Apache-2.0
// embedding: launch interface. Spec: pyspec/spec/embedding.py.
#pragma once

#include "pyspec/dtype.h"

namespace pyspec {

struct EmbeddingParams {
  const int32_t* ids;  // [T], each in [0, V): checked by the caller
  const void* weight;  // [V, K] of `dtype`, row stride weight_stride_v
  float* out;          // [T, K], row stride out_stride_t
  DType dtype;
  int64_t T, K;
  int64_t weight_stride_v, out_stride_t;
  float scale;
};

void embedding_cpu(const EmbeddingParams& p);
void embedding_cuda(const EmbeddingParams& p, void* stream);  // a cudaStream_t

}  // namespace pyspec
