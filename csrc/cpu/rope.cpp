// SPDX-License-Identifier: Apache-2.0
// CPU rope. One item is one token; append_kv rotates by the same function, so the bits agree.
#include "pyspec/rope.h"

#include "cpu/kernel.h"
#include "cpu/rows.h"

namespace pyspec::PYSPEC_ISA {
namespace {

constexpr int64_t kSerialElements = 32768;  // fewer are not worth waking a thread for

void rotate_token(const RopeParams& p, int64_t t) {
  float* row = static_cast<float*>(thread_scratch(size_t(p.D) * sizeof(float)));
  for (int64_t h = 0; h < p.H; ++h) {
    widen_row(p.x, t * p.x_stride_t + h * p.D, p.D, p.dtype, row);
    rotate_row(row, p.rope_table + p.positions[t] * p.Y, p.Y, p.interleaved);
    narrow_row(row, p.D, p.dtype, p.out, t * p.out_stride_t + h * p.D);
  }
}

}  // namespace

void rope(const RopeParams& p) {
  if (p.T * p.H * p.D < kSerialElements) {
    for (int64_t t = 0; t < p.T; ++t) rotate_token(p, t);
  } else {
    parallel_for(p.T, [&](int64_t t) { rotate_token(p, t); });
  }
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(rope, RopeParams)
