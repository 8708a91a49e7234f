// SPDX-License-Identifier: Apache-2.0
// build_tree: launch interface. Spec: pyspec/spec/build_tree.py.
#pragma once

#include <cstdint>

namespace pyspec {

struct BuildTreeParams {
  const float* logits;       // [T, V], row stride logits_stride_t
  const float* node_score;   // [T] not finite: not a node
  const int32_t* cu_t;       // [B+1]
  const int32_t* position;   // [B] absolute position of the tokens drawn here
  const float* temperature;  // [B]
  const int64_t* seed;       // [B]
  const int32_t* stream;     // [B]
  const int32_t* ids;        // [V] the tokens of the columns, ascending, or null: the columns' numbers
  int32_t* token;            // [B, width], -1 where there are fewer children
  int32_t* parent;           // [B, width] local index in the request's frontier, -1
  float* score;              // [B, width], -inf
  int64_t* node_best;        // [T, min(width, V)] memory for the kernel: every node's best children
  double* noise;             // [B, V rounded up to 64] memory for the kernel on the CPU
  int64_t T, B, V, width;
  int64_t logits_stride_t;
  bool shared_noise;
};

// Values must be in the ranges of the specification: the launch does not check them.
void build_tree_cpu(const BuildTreeParams& p);
void build_tree_cuda(const BuildTreeParams& p, void* stream);

}  // namespace pyspec
