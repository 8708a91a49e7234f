// SPDX-License-Identifier: Apache-2.0
// edit_logits: launch interface. Spec: pyspec/spec/edit_logits.py.
#pragma once

#include <cstdint>

namespace pyspec {

struct EditLogitsParams {
  const float* logits;           // [T, V], row stride logits_stride_t
  const int32_t* tokens;         // [T]
  const int32_t* parents;        // [T] local to the request, -1 for its first node
  const int32_t* cu_t;           // [B+1]
  const float* repetition;       // [B]
  const float* presence;         // [B]
  const float* frequency;        // [B]
  const int32_t* history;        // [N]
  const int32_t* history_count;  // [N]
  const int32_t* cu_history;     // [B+1]
  const int32_t* bias_token;     // [J]
  const float* bias;             // [J]
  const int32_t* cu_bias;        // [B+1]
  const int32_t* mask;           // [R, (V+31)/32], or null where no row has a mask
  const int32_t* mask_row;       // [T] -1: everything is allowed
  float* out;                    // [T, V]
  int64_t T, B, V;
  int64_t logits_stride_t;
};

// Values must be in the ranges of the specification: the launch does not check them.
void edit_logits_cpu(const EditLogitsParams& p);
void edit_logits_cuda(const EditLogitsParams& p, void* stream);

}  // namespace pyspec
