// SPDX-License-Identifier: Apache-2.0
// verify_tree: launch interface. Spec: pyspec/spec/verify_tree.py.
#pragma once

#include <cstdint>

namespace pyspec {

struct VerifyTreeParams {
  const float* logits;       // [T, V], row stride logits_stride_t; rows that are not walked do not matter
  const int32_t* tokens;     // [T]
  const int32_t* parents;    // [T] local to the request, -1 for its first node
  const int32_t* cu_t;       // [B+1]
  const int32_t* position;   // [B] absolute position of the root
  const float* temperature;  // [B]
  const int32_t* top_k;      // [B]
  const float* top_p;        // [B]
  const float* min_p;        // [B]
  const float* typical_p;    // [B]
  const int64_t* seed;       // [B]
  const int32_t* stream;     // [B]
  const float* edited;   // [T, V], row stride edited_stride_t, or null: the rows to pick from are `logits`
  int32_t* path;         // [B, max_path] local node indices, -1 beyond path_len
  int32_t* path_len;     // [B]
  int32_t* emitted;      // [B, max_path], -1 beyond path_len
  float* logprobs;       // [B, max_path], 0 beyond path_len
  int32_t* top_tokens;   // [B, max_path, num_logprobs], -1 beyond path_len
  float* top_logprobs;   // [B, max_path, num_logprobs], 0 beyond path_len
  int32_t* node_picks;   // [T * (1 + num_logprobs)] memory for the CUDA kernel if picks_all_nodes(T)
  float* node_logprobs;  // [T * (1 + num_logprobs)]
  int64_t T, B, V, max_path, num_logprobs;
  int64_t logits_stride_t, edited_stride_t;
  bool with_logprobs;  // else num_logprobs is 0, and the pass that sums exponentials is saved
};

// How the CUDA kernel takes T nodes: all of them at once, on multiprocessors that would idle otherwise, or a
// block per request that reads the rows of its path one after another. A path has 2 to 5 rows and a GPU 100
// to 160 multiprocessors, each with one block of 512 threads: up to two rounds of them all at once is the
// faster way.
constexpr bool picks_all_nodes(int64_t T) { return T <= 264; }

// Values must be in the ranges of the specification: the launch does not check them.
void verify_tree_cpu(const VerifyTreeParams& p);
void verify_tree_cuda(const VerifyTreeParams& p, void* stream);

}  // namespace pyspec
