// SPDX-License-Identifier: Apache-2.0
// verify_drawn: launch interface. Spec: pyspec/spec/verify_drawn.py.
#pragma once

#include <cstdint>

namespace pyspec {

enum class DrawnWalk { kTopDown, kTraversal, kTarget };

// What the CUDA kernel keeps of a node.
struct DrawnNode {
  int32_t first_child, last_child, next, previous;  // siblings; -1: none
  double handed, mass, rho, weight;
  int32_t failed;
};

struct VerifyDrawnParams {
  const float* logits;             // [T, V], row stride logits_stride_t
  const int32_t* tokens;           // [T]
  const int32_t* parents;          // [T] local to the request, -1 for its first node
  const int32_t* cu_t;             // [B+1]
  const int32_t* drawn;            // [T] 0 deterministic, 1 iid, 2 without replacement; not read at roots
  const float* draft_logits;       // [R, V], row stride draft_stride_r
  const int32_t* draft_row;        // [T] or -1
  const float* draft_temperature;  // [B]
  const int32_t* step;             // [B]
  const float* temperature;        // [B]
  const int32_t* top_k;            // [B]
  const float* top_p;              // [B]
  const float* min_p;              // [B]
  const float* typical_p;          // [B]
  const int64_t* seed;             // [B]
  const int32_t* stream;           // [B]
  const float* edited;  // [T, V], row stride edited_stride_t, or null: the target's rows are `logits`
  int32_t* path;        // [B, max_path] local node indices, -1 beyond path_len
  int32_t* path_len;    // [B]
  int32_t* emitted;     // [B, max_path], -1 beyond path_len
  float* logprobs;      // [B, max_path], 0 beyond path_len
  int32_t* top_tokens;  // [B, max_path, num_logprobs], -1 beyond path_len
  float* top_logprobs;  // [B, max_path, num_logprobs], 0 beyond path_len
  int64_t T, B, V, max_path, num_logprobs;
  int64_t logits_stride_t, draft_stride_r, edited_stride_t;
  DrawnWalk walk;
  bool with_logprobs;  // else num_logprobs is 0
  void* workspace;     // verify_drawn_workspace(T, B, V) bytes for the CUDA kernel
};

// The weights [V] of a node's two laws for every request, and every node.
constexpr int64_t verify_drawn_workspace(int64_t T, int64_t B, int64_t V) {
  return 2 * B * V * int64_t(sizeof(double)) + T * int64_t(sizeof(DrawnNode));
}

// Values must be in the ranges of the specification: the launch does not check them.
void verify_drawn_cpu(const VerifyDrawnParams& p);
void verify_drawn_cuda(const VerifyDrawnParams& p, void* stream);

}  // namespace pyspec
