// SPDX-License-Identifier: Apache-2.0
// Exact int32 sums of int8 products for NEON: 16 channels with some rows, 8 k at a time, by SMMLA, SDOT or
// plain multiplications. Included inside pyspec::PYSPEC_ISA.
#pragma once

#include "cpu/kernel.h"

namespace pyspec::PYSPEC_ISA {

// 16 channels x 4 k as they are packed: line[i] has channels 4 i to 4 i + 3.
using Int8Line = int8x16_t[4];

// sums + the products of 4 channels x 4 k with 4 k of a row, repeated.
inline int32x4_t dot4(int32x4_t sums, int8x16_t w, int8x16_t x) {
#if defined(PYSPEC_ISA_NEON_DOTPROD) || defined(PYSPEC_ISA_NEON_I8MM)
  return vdotq_s32(sums, w, x);
#else
  const int16x8_t low = vmull_s8(vget_low_s8(w), vget_low_s8(x)), high = vmull_high_s8(w, x);
  return vaddq_s32(sums, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high)));
#endif
}

template <int kRows>
struct NeonDots {
#if defined(PYSPEC_ISA_NEON_I8MM)
  static constexpr int kPairs = kRows / 2;  // SMMLA multiplies 2 channels with 2 rows, 8 k each
#else
  static constexpr int kPairs = 0;
#endif
  int32x4_t pairs[kPairs + 1][4][2] = {};  // of channels 4 i + 2 j, 4 i + 2 j + 1: first row, then second
  I32 single[kRows - 2 * kPairs + 1] = {};

  // Two lines with rows `stride` bytes apart.
  void add(const Int8Line& first, const Int8Line& second, const int8_t* x, int64_t stride) {
#if defined(PYSPEC_ISA_NEON_I8MM)
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const int32x4_t a = vreinterpretq_s32_s8(first[i]), b = vreinterpretq_s32_s8(second[i]);
      const int8x16_t w[2] = {vreinterpretq_s8_s32(vzip1q_s32(a, b)), vreinterpretq_s8_s32(vzip2q_s32(a, b))};
#pragma GCC unroll 2
      for (int pair = 0; pair < kPairs; ++pair) {
        const int8_t* rows = x + 2 * pair * stride;
        const int8x16_t xs = vcombine_s8(vld1_s8(rows), vld1_s8(rows + stride));
        for (int j = 0; j < 2; ++j) pairs[pair][i][j] = vmmlaq_s32(pairs[pair][i][j], xs, w[j]);
      }
    }
#endif
#pragma GCC unroll 4
    for (int m = 2 * kPairs; m < kRows; ++m) {
      int32x2_t eight;
      std::memcpy(&eight, x + m * stride, 8);
      const int8x16_t x_first = vreinterpretq_s8_s32(vdupq_lane_s32(eight, 0)),
                      x_second = vreinterpretq_s8_s32(vdupq_lane_s32(eight, 1));
      I32& sums = single[m - 2 * kPairs];
      for (int i = 0; i < 4; ++i) sums.v[i] = dot4(dot4(sums.v[i], first[i], x_first), second[i], x_second);
    }
  }

  I32 row(int m) const {
    if (m >= 2 * kPairs) return single[m - 2 * kPairs];
    I32 sums;
    for (int i = 0; i < 4; ++i) {
      const int64x2_t a = vreinterpretq_s64_s32(pairs[m / 2][i][0]),
                      b = vreinterpretq_s64_s32(pairs[m / 2][i][1]);
      sums.v[i] = vreinterpretq_s32_s64(m % 2 ? vzip2q_s64(a, b) : vzip1q_s64(a, b));
    }
    return sums;
  }
};

}  // namespace pyspec::PYSPEC_ISA
