// SPDX-License-Identifier: Apache-2.0
// Exact int32 dot products of one group: 16 channels of a packed block with kRows rows of int8 activations,
// by each instruction set's own means. Included inside pyspec::PYSPEC_ISA.
#pragma once

namespace pyspec::PYSPEC_ISA {

// kShift: the offset of the values is 2^kShift, none if -1, and then values are below 16. kNibbles: 4 lines
// hold the 32 k of the group (pyspec/quant_format.h), else each line holds 4 k. kLines lines of 4 k are
// summed. x [kRows][32]; negative_sums [kRows]: minus the sum over x of the k that are summed here.
#if defined(PYSPEC_ISA_AVX512)

constexpr int kMaxRows = 8;  // 8 + 8 accumulators, 8 lines

template <int kRows>
inline void dot_line(__m512i line, const int8_t* x, I32 (&dot)[kRows]) {
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m) {
    int32_t four;
    std::memcpy(&four, x + m * 32, 4);
    dot[m].v = _mm512_dpbusd_epi32(dot[m].v, line, _mm512_set1_epi32(four));
  }
}

template <int kShift, bool kNibbles, int kLines, int kRows>
inline void group_dots(const uint8_t* values, const int8_t* x, const int32_t* negative_sums,
                       I32 (&dot)[kRows]) {
#pragma GCC unroll 8
  for (int m = 0; m < kRows; ++m)
    dot[m] = kShift < 0 ? iset1(0) : shift_left<(kShift < 0 ? 0 : kShift)>(iset1(negative_sums[m]));
  if constexpr (kNibbles) {
    const __m512i low = _mm512_set1_epi8(0x0f);
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const __m512i line = _mm512_loadu_si512(values + r * 64);
      dot_line(_mm512_and_si512(line, low), x + r * 4, dot);
      dot_line(_mm512_and_si512(_mm512_srli_epi16(line, 4), low), x + 16 + r * 4, dot);
    }
  } else {
#pragma GCC unroll 8
    for (int r = 0; r < kLines; ++r) dot_line(_mm512_loadu_si512(values + r * 64), x + r * 4, dot);
  }
}

#elif defined(PYSPEC_ISA_AVX2)

constexpr int kMaxRows = 2;

// Pairs of products fit i16: sums of pairs are collected there over so many lines that they cannot saturate.
template <int kShift, bool kNibbles, int kLines, int kRows>
inline void group_dots(const uint8_t* values, const int8_t* x, const int32_t* negative_sums,
                       I32 (&dot)[kRows]) {
  constexpr int kSumLines = kShift <= 3 ? 8 : kShift == 4 ? 4 : kShift == 5 ? 2 : 1;
  const __m256i ones = _mm256_set1_epi16(1), low = _mm256_set1_epi8(0x0f),
                sign = _mm256_set1_epi8(char(0x80));
  for (int m = 0; m < kRows; ++m)
    dot[m] =
        kShift < 0 || kShift == 7 ? iset1(0) : shift_left<(kShift < 0 ? 0 : kShift)>(iset1(negative_sums[m]));
  for (int half = 0; half < 2; ++half) {  // channels 0..7, 8..15
    __m256i sums[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kLines; ++r) {
      __m256i line = _mm256_loadu_si256(
          reinterpret_cast<const __m256i*>(values + (kNibbles ? r % 4 : r) * 64 + half * 32));
      if (kNibbles) line = _mm256_and_si256(r < 4 ? line : _mm256_srli_epi16(line, 4), low);
      if (kShift == 7) line = _mm256_xor_si256(line, sign);
      for (int m = 0; m < kRows; ++m) {
        int32_t four;
        std::memcpy(&four, x + m * 32 + r * 4, 4);
        const __m256i xs = _mm256_set1_epi32(four);
        // Values of 8 bits: |w| * (x with the sign of w), at most 2 * 128 * 127 a pair.
        const __m256i pairs = kShift == 7
                                  ? _mm256_maddubs_epi16(_mm256_abs_epi8(line), _mm256_sign_epi8(xs, line))
                                  : _mm256_maddubs_epi16(line, xs);
        sums[m] = r % kSumLines == 0 ? pairs : _mm256_add_epi16(sums[m], pairs);
        if (r % kSumLines == kSumLines - 1 || r == kLines - 1) {
          __m256i& d = half ? dot[m].hi : dot[m].lo;
          d = _mm256_add_epi32(d, _mm256_madd_epi16(sums[m], ones));
        }
      }
    }
  }
}

#elif defined(__aarch64__)

// 4 channels of line r, signed: SDOT and SMMLA have no unsigned operand.
template <int kShift, bool kNibbles>
inline int8x16_t signed_values(const uint8_t* values, int r, int quarter) {
  uint8x16_t line = vld1q_u8(values + (kNibbles ? r % 4 : r) * 64 + quarter * 16);
  if (kNibbles) line = r < 4 ? vandq_u8(line, vdupq_n_u8(15)) : vshrq_n_u8(line, 4);
  if (kShift == 7) line = veorq_u8(line, vdupq_n_u8(0x80));  // the offset is taken off here
  return vreinterpretq_s8_u8(line);
}

template <int kShift>
inline I32 first_dot(int32_t negative_sum) {
  return iset1(kShift < 0 || kShift == 7 ? 0 : negative_sum * (1 << (kShift < 0 ? 0 : kShift)));
}

#if defined(PYSPEC_ISA_NEON_DOTPROD) || defined(PYSPEC_ISA_NEON_I8MM)

constexpr int kMaxRows = 4;  // 16 accumulators, 4 lines, 4 rows

template <int kShift, bool kNibbles, int kLines, int kRows>
inline void sdot_rows(const uint8_t* values, const int8_t* x, const int32_t* negative_sums, I32* dot) {
  for (int m = 0; m < kRows; ++m) dot[m] = first_dot<kShift>(negative_sums[m]);
#pragma GCC unroll 8
  for (int r = 0; r < kLines; ++r) {
    int8x16_t xs[kRows];
    for (int m = 0; m < kRows; ++m)
      xs[m] = vreinterpretq_s8_s32(vld1q_dup_s32(reinterpret_cast<const int32_t*>(x + m * 32 + r * 4)));
#pragma GCC unroll 4
    for (int quarter = 0; quarter < 4; ++quarter) {
      const int8x16_t w = signed_values<kShift, kNibbles>(values, r, quarter);
      for (int m = 0; m < kRows; ++m) dot[m].v[quarter] = vdotq_s32(dot[m].v[quarter], w, xs[m]);
    }
  }
}

#if defined(PYSPEC_ISA_NEON_I8MM)

// Two rows: SMMLA multiplies 2 channels x 8 k with 2 rows x 8 k.
template <int kShift, bool kNibbles, int kLines>
inline void smmla_rows(const uint8_t* values, const int8_t* x, const int32_t* negative_sums, I32* dot) {
  int32x4_t pairs[4][2] = {};  // (channel, row) = (0, 0), (1, 0), (0, 1), (1, 1)
#pragma GCC unroll 4
  for (int r = 0; r < kLines; r += 2) {
    const int8x16_t xs = vcombine_s8(vld1_s8(x + r * 4), vld1_s8(x + 32 + r * 4));
#pragma GCC unroll 4
    for (int quarter = 0; quarter < 4; ++quarter) {
      const int32x4_t first = vreinterpretq_s32_s8(signed_values<kShift, kNibbles>(values, r, quarter));
      const int32x4_t second = vreinterpretq_s32_s8(signed_values<kShift, kNibbles>(values, r + 1, quarter));
      const int8x16_t w[2] = {vreinterpretq_s8_s32(vzip1q_s32(first, second)),
                              vreinterpretq_s8_s32(vzip2q_s32(first, second))};
      for (int i = 0; i < 2; ++i) pairs[quarter][i] = vmmlaq_s32(pairs[quarter][i], xs, w[i]);
    }
  }
  const I32 start[2] = {first_dot<kShift>(negative_sums[0]), first_dot<kShift>(negative_sums[1])};
  for (int quarter = 0; quarter < 4; ++quarter) {
    const int64x2_t a = vreinterpretq_s64_s32(pairs[quarter][0]),
                    b = vreinterpretq_s64_s32(pairs[quarter][1]);
    dot[0].v[quarter] = vaddq_s32(start[0].v[quarter], vreinterpretq_s32_s64(vzip1q_s64(a, b)));
    dot[1].v[quarter] = vaddq_s32(start[1].v[quarter], vreinterpretq_s32_s64(vzip2q_s64(a, b)));
  }
}

template <int kShift, bool kNibbles, int kLines, int kRows>
inline void group_dots(const uint8_t* values, const int8_t* x, const int32_t* negative_sums,
                       I32 (&dot)[kRows]) {
#pragma GCC unroll 2
  for (int m = 0; m + 1 < kRows; m += 2)
    smmla_rows<kShift, kNibbles, kLines>(values, x + m * 32, negative_sums + m, dot + m);
  if (kRows % 2)
    sdot_rows<kShift, kNibbles, kLines, 1>(values, x + (kRows - 1) * 32, negative_sums + kRows - 1,
                                           dot + kRows - 1);
}

#else

template <int kShift, bool kNibbles, int kLines, int kRows>
inline void group_dots(const uint8_t* values, const int8_t* x, const int32_t* negative_sums,
                       I32 (&dot)[kRows]) {
  sdot_rows<kShift, kNibbles, kLines, kRows>(values, x, negative_sums, dot);
}

#endif
#else

constexpr int kMaxRows = 2;

// Products of 8 bits fit i16; pairs of them are added to i32 sums, two of them a channel.
template <int kShift, bool kNibbles, int kLines, int kRows>
inline void group_dots(const uint8_t* values, const int8_t* x, const int32_t* negative_sums,
                       I32 (&dot)[kRows]) {
  for (int m = 0; m < kRows; ++m) dot[m] = first_dot<kShift>(negative_sums[m]);
#pragma GCC unroll 4
  for (int quarter = 0; quarter < 4; ++quarter) {
    int32x4_t low[kRows] = {}, high[kRows] = {};
#pragma GCC unroll 8
    for (int r = 0; r < kLines; ++r) {
      const int8x16_t w = signed_values<kShift, kNibbles>(values, r, quarter);
      for (int m = 0; m < kRows; ++m) {
        const int8x16_t xs =
            vreinterpretq_s8_s32(vld1q_dup_s32(reinterpret_cast<const int32_t*>(x + m * 32 + r * 4)));
        low[m] = vpadalq_s16(low[m], vmull_s8(vget_low_s8(w), vget_low_s8(xs)));
        high[m] = vpadalq_s16(high[m], vmull_high_s8(w, xs));
      }
    }
    for (int m = 0; m < kRows; ++m)
      dot[m].v[quarter] = vaddq_s32(dot[m].v[quarter], vpaddq_s32(low[m], high[m]));
  }
}

#endif
#else

constexpr int kMaxRows = 1;

template <int kShift, bool kNibbles, int kLines, int kRows>
inline void group_dots(const uint8_t* values, const int8_t* x, const int32_t* negative_sums,
                       I32 (&dot)[kRows]) {
  for (int m = 0; m < kRows; ++m) {
    dot[m] = iset1(kShift < 0 ? 0 : negative_sums[m] * (1 << (kShift < 0 ? 0 : kShift)));
    for (int r = 0; r < kLines; ++r) {
      const uint8_t* line = values + (kNibbles ? r % 4 : r) * 64;
      for (int i = 0; i < 64; ++i) {
        const int w = !kNibbles ? line[i] : r < 4 ? line[i] & 15 : line[i] >> 4;
        dot[m].v[i / 4] += w * x[m * 32 + r * 4 + i % 4];
      }
    }
  }
}

#endif

}  // namespace pyspec::PYSPEC_ISA
