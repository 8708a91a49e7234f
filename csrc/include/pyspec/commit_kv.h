// SPDX-License-Identifier: Apache-2.0
// commit_kv: launch interface. Spec: pyspec/spec/commit_kv.py.
#pragma once

#include "pyspec/kv_pages.h"

namespace pyspec {

struct CommitKvParams {
  KvPages k_pages, v_pages;   // [P, S, G, D] of kv_dtype, written
  const int32_t* page_table;  // [B, W] contiguous
  const int32_t* kv_len;      // [B]
  const int32_t* path;        // [B, E] contiguous, strictly increasing in its first path_len entries
  const int32_t* path_len;    // [B]
  int64_t B, W, E, S, G, D;
  DType kv_dtype;
  KvLayout kv_layout;
  float* k_scale = nullptr;  // [P, S, G] contiguous, written: given exactly when kv_dtype is of 8 bits
  float* v_scale = nullptr;
};

void commit_kv_cpu(const CommitKvParams& p);                 // not kF8
void commit_kv_cuda(const CommitKvParams& p, void* stream);  // a cudaStream_t; paged layout alone

}  // namespace pyspec
