// SPDX-License-Identifier: Apache-2.0
// int8 rows as w8a8_linear multiplies with them, and dot products with channels that lie as rows. Included
// inside pyspec::PYSPEC_ISA.
#pragma once

#include "cpu/kernel.h"

namespace pyspec::PYSPEC_ISA {

constexpr int64_t kStepK = 64, kRowTile = 16;
constexpr int64_t kSerialBytes = 65536;  // copied in 3 us: less is not worth waking a thread for

// M rows of K int8 in tiles of kRowTile (the last one may have fewer: R): per tile, then step of 64 k,
// [R][64], zeros beyond K. offsets [M]: 128 times the sum of a row, which is what values + 128 add.
struct Int8Rows {
  int8_t* q;
  int32_t* offsets;
  int64_t M, steps;

  Int8Rows(const int8_t* x, int64_t stride_m, int64_t M, int64_t K) : M(M), steps((K + kStepK - 1) / kStepK) {
    auto* memory = static_cast<uint8_t*>(thread_scratch(size_t(M * (steps * kStepK + 4)), 1));
    q = reinterpret_cast<int8_t*>(memory);
    offsets = reinterpret_cast<int32_t*>(memory + M * steps * kStepK);
    const auto copy = [&](int64_t m) {
      const int8_t* row = x + m * stride_m;
      int32_t sum = 0;
      for (int64_t s = 0; s < steps; ++s) {
        int8_t* to = at(m, s);
        const int64_t count = std::min(kStepK, K - s * kStepK);
        std::memset(to, 0, kStepK);
        std::memcpy(to, row + s * kStepK, size_t(count));
        for (int64_t k = 0; k < kStepK; ++k) sum += to[k];
      }
      offsets[m] = 128 * sum;
    };
    if (M * K < kSerialBytes) {
      for (int64_t m = 0; m < M; ++m) copy(m);
    } else {
      parallel_for(M, copy);
    }
  }
  int64_t tile_rows(int64_t m) const { return std::min(kRowTile, M - m / kRowTile * kRowTile); }
  int8_t* at(int64_t m, int64_t step) const {
    const int64_t first = m / kRowTile * kRowTile;
    return q + (first * steps + step * tile_rows(m) + m - first) * kStepK;
  }
};

// Rows of one call that share their channels' loads.
#if defined(PYSPEC_ISA_AVX512)
constexpr int kLaneRows = 4, kLaneChannels = 4;
#elif defined(PYSPEC_ISA_AVX2)
constexpr int kLaneRows = 2, kLaneChannels = 4;
#else
constexpr int kLaneRows = 1, kLaneChannels = 4;
#endif

#if defined(PYSPEC_ISA_AVX2)
inline __m256i widen16(const int8_t* p) {
  return _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
#endif

// sums[m][c] = sum over k of a row of one tile with channel w + c stride; x is the first row's first step and
// x_step the bytes to the next. Lanes are k: integer sums are exact in any order.
template <int kRows, int kCount>
inline void lane_dots(const int8_t* x, int64_t x_step, const int32_t* offsets, const int8_t* w,
                      int64_t stride, int64_t K, int32_t (*sums)[16]) {
#if defined(PYSPEC_ISA_AVX512)
  const __m512i flip = _mm512_set1_epi8(char(0x80));  // w + 128, which is unsigned
  __m512i acc[kRows][kCount];
  for (int m = 0; m < kRows; ++m)
    for (int c = 0; c < kCount; ++c) acc[m][c] = _mm512_setzero_si512();
  for (int64_t k = 0; k < K; k += kStepK, x += x_step) {
    const __mmask64 mask = K - k >= kStepK ? ~__mmask64(0) : (__mmask64(1) << (K - k)) - 1;
#pragma GCC unroll 4
    for (int c = 0; c < kCount; ++c) {
      const __m512i values = _mm512_xor_si512(_mm512_maskz_loadu_epi8(mask, w + c * stride + k), flip);
#pragma GCC unroll 4
      for (int m = 0; m < kRows; ++m)
        acc[m][c] = _mm512_dpbusd_epi32(acc[m][c], values, _mm512_loadu_si512(x + m * kStepK));
    }
  }
  for (int m = 0; m < kRows; ++m)
    for (int c = 0; c < kCount; ++c)
      sums[m][c] = int32_t(uint32_t(_mm512_reduce_add_epi32(acc[m][c])) - uint32_t(offsets[m]));
#elif defined(PYSPEC_ISA_AVX2)
  __m256i acc[kRows][kCount];
  for (int m = 0; m < kRows; ++m)
    for (int c = 0; c < kCount; ++c) acc[m][c] = _mm256_setzero_si256();
  const int64_t full = K / 16 * 16;
  for (int64_t k = 0; k < full; k += 16) {
    const int8_t* xs = x + k / kStepK * x_step + k % kStepK;
    for (int c = 0; c < kCount; ++c) {
      const __m256i values = widen16(w + c * stride + k);
      for (int m = 0; m < kRows; ++m)
        acc[m][c] = _mm256_add_epi32(acc[m][c], _mm256_madd_epi16(values, widen16(xs + m * kStepK)));
    }
  }
  for (int m = 0; m < kRows; ++m)
    for (int c = 0; c < kCount; ++c) {
      sums[m][c] = reduce_add(I32{acc[m][c], _mm256_setzero_si256()});
      for (int64_t k = full; k < K; ++k)
        sums[m][c] += x[k / kStepK * x_step + m * kStepK + k % kStepK] * w[c * stride + k];
    }
#else
  for (int m = 0; m < kRows; ++m)
    for (int c = 0; c < kCount; ++c) {
      sums[m][c] = 0;
      for (int64_t k0 = 0; k0 < K; k0 += kStepK) {
        const int8_t* xs = x + k0 / kStepK * x_step + m * kStepK;
        for (int64_t k = k0; k < std::min(K, k0 + kStepK); ++k) sums[m][c] += xs[k - k0] * w[c * stride + k];
      }
    }
#endif
}

}  // namespace pyspec::PYSPEC_ISA
