// SPDX-License-Identifier: Apache-2.0
// Exact int32 dot products of one group: 16 channels of a packed block with kRows rows of int8 activations,
// by each instruction set's own means; kMaxBlocks blocks at once. Included inside pyspec::PYSPEC_ISA.
#pragma once

#if defined(__aarch64__)
#include "cpu/neon_dot.h"
#endif

namespace pyspec::PYSPEC_ISA {

// kShift: the offset of the values is 2^kShift, none if -1, and then values are below 16. kNibbles: 4 lines
// hold the 32 k of the group (pyspec/quant_format.h), else each line holds 4 k. kLines lines of 4 k are
// summed; kBlocks blocks lie `stride` bytes apart. x [kRows][32]; negative_sums [kRows]: minus the sum over x
// of the k that are summed here.
#if defined(PYSPEC_ISA_AVX512)

// Two vector units multiply, two others add, convert and take nibbles apart, and two operands are loaded a
// cycle. A group of a row and 16 channels takes 8 products and 2 or 3 multiplications to fold: 5 or 5.5
// cycles. With one block its 8 operands of x, lines and scales take as long to load; with two each operand of
// x serves twice.
constexpr int kMaxRows = 6, kMaxBlocks = 2;  // 12 + 12 accumulators, 4 lines, 1 operand of x

template <int kRows, int kBlocks>
inline void dot_line(const __m512i (&line)[kBlocks], const int8_t* x, I32 (&dot)[kBlocks][kRows]) {
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
    int32_t four;
    std::memcpy(&four, x + m * 32, 4);
    const __m512i xs = _mm512_set1_epi32(four);
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) dot[b][m].v = _mm512_dpbusd_epi32(dot[b][m].v, line[b], xs);
  }
}

template <int kShift, bool kNibbles, int kLines, int kRows, int kBlocks>
inline void group_dots(const uint8_t* values, int64_t stride, const int8_t* x, const int32_t* negative_sums,
                       I32 (&dot)[kBlocks][kRows]) {
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
    dot[0][m] = kShift < 0 ? iset1(0) : shift_left<(kShift < 0 ? 0 : kShift)>(iset1(negative_sums[m]));
    if constexpr (kBlocks == 2) dot[1][m] = dot[0][m];
  }
  if constexpr (kNibbles) {
    const __m512i mask = _mm512_set1_epi8(0x0f);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      __m512i low[kBlocks], high[kBlocks];
#pragma GCC unroll 2
      for (int b = 0; b < kBlocks; ++b) {
        const __m512i line = _mm512_loadu_si512(values + b * stride + r * 64);
        low[b] = _mm512_and_si512(line, mask);
        high[b] = _mm512_and_si512(_mm512_srli_epi16(line, 4), mask);
      }
      dot_line(low, x + r * 4, dot);
      dot_line(high, x + 16 + r * 4, dot);
    }
  } else {
#pragma GCC unroll 8
    for (int r = 0; r < kLines; ++r) {
      __m512i line[kBlocks];
#pragma GCC unroll 2
      for (int b = 0; b < kBlocks; ++b) line[b] = _mm512_loadu_si512(values + b * stride + r * 64);
      dot_line(line, x + r * 4, dot);
    }
  }
}

#elif defined(PYSPEC_ISA_AVX2)

constexpr int kMaxRows = 4, kMaxBlocks = 1;

// Pairs of products fit i16: sums of pairs are collected there over so many lines that they cannot saturate.
template <int kShift, bool kNibbles, int kLines, int kRows, int kBlocks>
inline void group_dots(const uint8_t* values, int64_t, const int8_t* x, const int32_t* negative_sums,
                       I32 (&dot)[kBlocks][kRows]) {
  static_assert(kBlocks == 1);
  constexpr int kSumLines = kShift <= 3 ? 8 : kShift == 4 ? 4 : kShift == 5 ? 2 : 1;
  const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(0x0f),
                sign = _mm256_set1_epi8(char(0x80));
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
    dot[0][m] =
        kShift < 0 || kShift == 7 ? iset1(0) : shift_left<(kShift < 0 ? 0 : kShift)>(iset1(negative_sums[m]));
  __m256i sums[kRows][2];
#pragma GCC unroll 8
  for (int r = 0; r < kLines; ++r) {
    __m256i line[2], size[2];  // channels 0..7, 8..15
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      line[i] =
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(values + (kNibbles ? r % 4 : r) * 64 + i * 32));
      if (kNibbles) line[i] = _mm256_and_si256(r < 4 ? line[i] : _mm256_srli_epi16(line[i], 4), low);
      if (kShift == 7) line[i] = _mm256_xor_si256(line[i], sign);
      size[i] = _mm256_abs_epi8(line[i]);
    }
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      int32_t four;
      std::memcpy(&four, x + m * 32 + r * 4, 4);
      const __m256i xs = _mm256_set1_epi32(four);
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        // Values of 8 bits: |w| * (x with the sign of w), at most 2 * 128 * 127 a pair.
        const __m256i pairs = kShift == 7 ? _mm256_maddubs_epi16(size[i], _mm256_sign_epi8(xs, line[i]))
                                          : _mm256_maddubs_epi16(line[i], xs);
        sums[m][i] = r % kSumLines == 0 ? pairs : _mm256_add_epi16(sums[m][i], pairs);
        if (r % kSumLines == kSumLines - 1 || r == kLines - 1) {
          __m256i& d = i ? dot[0][m].hi : dot[0][m].lo;
          d = _mm256_add_epi32(d, _mm256_madd_epi16(sums[m][i], ones));
        }
      }
    }
  }
}

#elif defined(__aarch64__)

constexpr int kMaxRows = 4, kMaxBlocks = 1;  // 16 accumulators, 8 registers of weights, 4 of rows

template <int kShift, bool kNibbles, int kLines, int kRows, int kBlocks>
inline void group_dots(const uint8_t* values, int64_t, const int8_t* x, const int32_t* negative_sums,
                       I32 (&dot)[kBlocks][kRows]) {
  static_assert(kBlocks == 1);
  const auto signed_line = [&](int r, Int8Line& line) {
    for (int i = 0; i < 4; ++i) {
      uint8x16_t w = vld1q_u8(values + (kNibbles ? r % 4 : r) * 64 + i * 16);
      if (kNibbles) w = r < 4 ? vandq_u8(w, vdupq_n_u8(15)) : vshrq_n_u8(w, 4);
      if (kShift == 7) w = veorq_u8(w, vdupq_n_u8(0x80));  // the offset is taken off here
      line[i] = vreinterpretq_s8_u8(w);
    }
  };
  NeonDots<kRows> sums;
#pragma GCC unroll 4
  for (int r = 0; r < kLines; r += 2) {
    Int8Line first, second;
    signed_line(r, first);
    signed_line(r + 1, second);
    sums.add(first, second, x + r * 4, 32);
  }
  for (int m = 0; m < kRows; ++m)
    dot[0][m] = kShift < 0 || kShift == 7
                    ? sums.row(m)
                    : sums.row(m) + shift_left<(kShift < 0 ? 0 : kShift)>(iset1(negative_sums[m]));
}

#else

constexpr int kMaxRows = 1, kMaxBlocks = 1;

template <int kShift, bool kNibbles, int kLines, int kRows, int kBlocks>
inline void group_dots(const uint8_t* values, int64_t, const int8_t* x, const int32_t* negative_sums,
                       I32 (&dot)[kBlocks][kRows]) {
  static_assert(kBlocks == 1);
  for (int m = 0; m < kRows; ++m) {
    dot[0][m] = iset1(kShift < 0 ? 0 : negative_sums[m] * (1 << (kShift < 0 ? 0 : kShift)));
    for (int r = 0; r < kLines; ++r) {
      const uint8_t* line = values + (kNibbles ? r % 4 : r) * 64;
      for (int i = 0; i < 64; ++i) {
        const int w = !kNibbles ? line[i] : r < 4 ? line[i] & 15 : line[i] >> 4;
        dot[0][m].v[i / 4] += w * x[m * 32 + r * 4 + i % 4];
      }
    }
  }
}

#endif

}  // namespace pyspec::PYSPEC_ISA
