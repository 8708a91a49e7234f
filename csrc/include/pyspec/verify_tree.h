// SPDX-License-Identifier: Apache-2.0
// verify_tree: launch interface. Spec: pyspec/spec/verify_tree.py.
#pragma once

#include <cstdint>

namespace pyspec {

struct VerifyTreeParams {
  const float* logits;       // [T, V], row stride logits_stride_t; only rows of walked nodes are read
  const int32_t* tokens;     // [T]
  const int32_t* parents;    // [T] local to the request, -1 for its first node
  const int32_t* cu_t;       // [B+1]
  const int32_t* position;   // [B] absolute position of the root
  const float* temperature;  // [B]
  const int32_t* top_k;      // [B]
  const float* top_p;        // [B]
  const float* min_p;        // [B]
  const int64_t* seed;       // [B]
  const int32_t* stream;     // [B]
  int32_t* path;             // [B, max_path] local node indices, -1 beyond path_len
  int32_t* path_len;         // [B]
  int32_t* emitted;          // [B, max_path], -1 beyond path_len
  float* logprobs;           // [B, max_path], 0 beyond path_len; null: not wanted
  int32_t* top_tokens;       // [B, max_path, num_logprobs], -1 beyond path_len
  float* top_logprobs;       // [B, max_path, num_logprobs], 0 beyond path_len
  int64_t B, V, max_path, num_logprobs;  // num_logprobs must be 0 without logprobs
  int64_t logits_stride_t;
};

// Values must be in the ranges of the specification: the launch does not check them.
void verify_tree_cpu(const VerifyTreeParams& p);

}  // namespace pyspec
