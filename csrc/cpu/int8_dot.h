// SPDX-License-Identifier: Apache-2.0
// Exact dot products of int8 rows with packed int8 channels (pyspec/w8a8_linear.h), by each instruction set's
// own means. The values of a packed weight are unsigned, w + 128: sums are taken modulo 2^32, and what the
// 128 added is subtracted at the end. Included inside pyspec::PYSPEC_ISA.
#pragma once

#include "cpu/kernel.h"
#if defined(__aarch64__)
#include "cpu/neon_dot.h"
#endif

namespace pyspec::PYSPEC_ISA {

#if defined(PYSPEC_ISA_AVX512)
constexpr int kDotRows = 8, kDotBlocks = 2;  // 16 sums, 2 lines, 1 broadcast
#elif defined(PYSPEC_ISA_AVX2)
constexpr int kDotRows = 2, kDotBlocks = 1;  // 8 sums of pairs, 4 quarters of a line, 1 broadcast
#else
constexpr int kDotRows = 4, kDotBlocks = 1;
#endif

// The running sums of kRows x kBlocks x 16 channels.
template <int kRows, int kBlocks>
struct Int8Sums {
  // Int8Sums() starts at 0. add() adds 64 k: x is kRows rows of 64 bytes, `values` 16 lines of a block, other
  // blocks `stride` bytes apart. total() is a block's sums of a row, less `offset`.
#if defined(PYSPEC_ISA_AVX512)
  // Few sums: every other line has its own, so that the instructions' latency hides.
  static constexpr int kChains = kRows * kBlocks <= 4 ? 2 : 1;
  __m512i sum[kChains][kRows][kBlocks];

  Int8Sums() {
    for (auto& chain : sum)
      for (auto& row : chain)
        for (__m512i& s : row) s = _mm512_setzero_si512();
  }
  void add(const int8_t* x, const uint8_t* values, int64_t stride) {
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) {
      __m512i line[kBlocks];
      for (int b = 0; b < kBlocks; ++b) line[b] = _mm512_loadu_si512(values + b * stride + r * 64);
#pragma GCC unroll 8
      for (int m = 0; m < kRows; ++m) {
        int32_t four;
        std::memcpy(&four, x + m * 64 + r * 4, 4);
        const __m512i xs = _mm512_set1_epi32(four);
        for (int b = 0; b < kBlocks; ++b)
          sum[r % kChains][m][b] = _mm512_dpbusd_epi32(sum[r % kChains][m][b], line[b], xs);
      }
    }
  }
  I32 total(int m, int b, int32_t offset) const {
    const I32 all{kChains == 2 ? _mm512_add_epi32(sum[0][m][b], sum[kChains - 1][m][b]) : sum[0][m][b]};
    return all - iset1(offset);
  }
#elif defined(PYSPEC_ISA_AVX2)
  __m256i sum[kRows][4];  // of 4 channels each: k 4 r, 4 r + 1 and k 4 r + 2, 4 r + 3 apart

  Int8Sums() {
    for (auto& row : sum)
      for (__m256i& s : row) s = _mm256_setzero_si256();
  }
  void add(const int8_t* x, const uint8_t* values, int64_t) {
    static_assert(kBlocks == 1);
#pragma GCC unroll 4
    for (int r = 0; r < 16; ++r) {
      __m256i line[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i)
        line[i] =
            _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(values + r * 64 + i * 16)));
#pragma GCC unroll 2
      for (int m = 0; m < kRows; ++m) {
        int32_t four;
        std::memcpy(&four, x + m * 64 + r * 4, 4);
        const __m256i xs = _mm256_cvtepi8_epi16(_mm_set1_epi32(four));
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) sum[m][i] = _mm256_add_epi32(sum[m][i], _mm256_madd_epi16(line[i], xs));
      }
    }
  }
  I32 total(int m, int, int32_t offset) const {
    const __m256i lo = _mm256_hadd_epi32(sum[m][0], sum[m][1]), hi = _mm256_hadd_epi32(sum[m][2], sum[m][3]);
    // hadd goes by halves of 128 bits.
    return I32{_mm256_permute4x64_epi64(lo, 0xd8), _mm256_permute4x64_epi64(hi, 0xd8)} - iset1(offset);
  }
#elif defined(__aarch64__)
  NeonDots<kRows> sum;  // of signed values: nothing is to be subtracted

  void add(const int8_t* x, const uint8_t* values, int64_t) {
    static_assert(kBlocks == 1);
    const auto signed_line = [&](int r, Int8Line& line) {
      for (int i = 0; i < 4; ++i)
        line[i] = vreinterpretq_s8_u8(veorq_u8(vld1q_u8(values + r * 64 + i * 16), vdupq_n_u8(0x80)));
    };
#pragma GCC unroll 4
    for (int r = 0; r < 16; r += 2) {
      Int8Line first, second;
      signed_line(r, first);
      signed_line(r + 1, second);
      sum.add(first, second, x + r * 4, 64);
    }
  }
  I32 total(int m, int, int32_t) const { return sum.row(m); }
#else
  I32 sum[kRows][kBlocks];

  Int8Sums() {
    for (auto& row : sum)
      for (I32& s : row) s = iset1(0);
  }
  void add(const int8_t* x, const uint8_t* values, int64_t) {
    static_assert(kBlocks == 1);
    for (int r = 0; r < 16; ++r)
      for (int m = 0; m < kRows; ++m)
        for (int i = 0; i < 64; ++i) {
          int32_t& s = sum[m][0].v[i / 4];
          s = int32_t(uint32_t(s) + uint32_t(values[r * 64 + i] * x[m * 64 + r * 4 + i % 4]));
        }
  }
  I32 total(int m, int b, int32_t offset) const {
    I32 total = sum[m][b];
    for (int32_t& s : total.v) s = int32_t(uint32_t(s) - uint32_t(offset));
    return total;
  }
#endif
};

}  // namespace pyspec::PYSPEC_ISA
