// SPDX-License-Identifier: Apache-2.0
// draw_children: launch interface. Spec: pyspec/spec/draw_children.py.
#pragma once

#include <cstdint>

namespace pyspec {

enum class DrawRule { kIid, kWithoutReplacement, kHybrid };

struct DrawChildrenParams {
  const float* logits;       // [T, V], row stride logits_stride_t
  const int32_t* count;      // [T]
  const float* temperature;  // [T]
  const int64_t* seed;       // [T]
  const int32_t* stream;     // [T]
  const int32_t* step;       // [T]
  const int32_t* node;       // [T]
  int32_t* token;            // [T, width], -1: none
  float* log_q;              // [T, width], -inf: none
  int64_t T, V, width;
  int64_t logits_stride_t;
  DrawRule rule;
};

// Values must be in the ranges of the specification: the launch does not check them.
void draw_children_cpu(const DrawChildrenParams& p);
void draw_children_cuda(const DrawChildrenParams& p, void* stream);

}  // namespace pyspec
