// SPDX-License-Identifier: Apache-2.0
// append_kv: launch interface. Spec: pyspec/spec/append_kv.py.
#pragma once

#include "pyspec/kv_pages.h"

namespace pyspec {

struct AppendKvParams {
  const void* k;             // [T, G, D] of dtype, row stride k_stride_t, the rest contiguous
  const void* v;             // [T, G, D] of dtype, row stride v_stride_t, the rest contiguous
  KvPages k_pages, v_pages;  // [P, S, G, D] of kv_dtype, written
  const int64_t* slots;      // [T]: page * S + offset
  const int32_t* positions;  // [T]: rows of rope_table
  const float* rope_table;   // [X, Y] contiguous: Y/2 cosines, then Y/2 sines; or null: no RoPE
  int64_t T, G, D, S, Y;
  int64_t k_stride_t, v_stride_t;
  DType kv_dtype;
  KvLayout kv_layout;
  bool interleaved;
  DType dtype = DType::kF32;  // of k and v
  float* k_scale = nullptr;   // [P, S, G] contiguous, written: given exactly when kv_dtype is of 8 bits
  float* v_scale = nullptr;
};

void append_kv_cpu(const AppendKvParams& p);                 // not kF8
void append_kv_cuda(const AppendKvParams& p, void* stream);  // a cudaStream_t; paged layout alone

}  // namespace pyspec
