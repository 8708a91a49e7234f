// SPDX-License-Identifier: Apache-2.0
// CPU rope. One item is one token; append_kv rotates by the same function, so the bits agree.
#include "pyspec/rope.h"

#include "cpu/kernel.h"
#include "cpu/rows.h"

namespace pyspec::PYSPEC_ISA {
namespace {

constexpr int64_t kSerialElements = 32768;  // fewer are not worth waking a thread for

void rotate_token(const RopeParams& p, int64_t t) {
  const float* angles = p.rope_table + p.positions[t] * p.Y;
  const bool f32 = p.dtype == DType::kF32;
  float* scratch = f32 ? nullptr : static_cast<float*>(thread_scratch(size_t(p.D) * sizeof(float)));
  for (int64_t h = 0; h < p.H; ++h) {
    const int64_t from = t * p.x_stride_t + h * p.D, to = t * p.out_stride_t + h * p.D;
    float* row = f32 ? static_cast<float*>(p.out) + to : scratch;
    if (!f32 || p.x != p.out) widen_row(p.x, from, p.D, p.dtype, row);
    rotate_row(row, angles, p.Y, p.interleaved);
    if (!f32) narrow_row(row, p.D, p.dtype, p.out, to);
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
