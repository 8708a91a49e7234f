// SPDX-License-Identifier: Apache-2.0
// w8a8_linear, w8a8_linear_packed and pack_int8_weight: launch interface. Spec: pyspec/spec/<op>.py.
#pragma once

#include "pyspec/dtype.h"

namespace pyspec {

// A packed weight: blocks of 16 channels (N padded), [K/64][16][64] bytes each (K padded to 64): byte 4 c + j
// of line r of step s is w[channel c, k = 64 s + 4 r + j] + 128, and 0 beyond N and K. A line is an operand
// of VNNI, a step one of AMX.
inline int64_t packed_int8_block_bytes(int64_t K) { return (K + 63) / 64 * 1024; }

struct W8A8LinearParams {
  const int8_t* x;       // [M, K], row stride x_stride_m
  const int8_t* weight;  // [N, K], row stride weight_stride_n; or packed, aligned to 64
  const float* x_scale;  // [M]
  const float* w_scale;  // [N]
  void* out;             // [M, N] of out_dtype
  DType out_dtype;
  int64_t M, N, K;
  int64_t x_stride_m, weight_stride_n;
  bool packed = false;  // CPU only
};

// On GPUs rows of x are as bind/rows.h pads them to 32 k.
void w8a8_linear_cpu(const W8A8LinearParams& p);
void w8a8_linear_cuda(const W8A8LinearParams& p, void* stream);

}  // namespace pyspec
