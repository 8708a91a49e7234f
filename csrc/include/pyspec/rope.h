// SPDX-License-Identifier: Apache-2.0
// rope: launch interface. Spec: pyspec/spec/rope.py.
#pragma once

#include <cstdint>

#include "pyspec/dtype.h"

namespace pyspec {

struct RopeParams {
  const void* x;             // [T, H, D] of dtype, row stride x_stride_t, the rest contiguous
  const int32_t* positions;  // [T]: rows of rope_table
  const float* rope_table;   // [X, Y] contiguous: Y/2 cosines, then Y/2 sines
  void* out;                 // [T, H, D] of dtype, row stride out_stride_t; may be x itself
  int64_t T, H, D, Y;
  int64_t x_stride_t, out_stride_t;
  DType dtype;
  bool interleaved;
};

void rope_cpu(const RopeParams& p);
void rope_cuda(const RopeParams& p, void* stream);  // a cudaStream_t

}  // namespace pyspec
