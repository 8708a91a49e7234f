// SPDX-License-Identifier: Apache-2.0
// Rows of f32 times packed blocks of 16 channels (pyspec/linear.h), f32 or bf16. For each output one FMA
// chain runs over even k and one over odd k, and the result is even + odd, whatever the tile is. Included
// inside pyspec::PYSPEC_ISA.
#pragma once

namespace pyspec::PYSPEC_ISA {

// Registers: 2 kRows kBlocks accumulators and 2 kBlocks weights.
#if defined(PYSPEC_ISA_AVX512)
constexpr int kTileRows = 6, kTileBlocks = 2;
#elif defined(PYSPEC_ISA_AVX2) || defined(__aarch64__)
constexpr int kTileRows = 2, kTileBlocks = 1;
#else
constexpr int kTileRows = 1, kTileBlocks = 1;
#endif

template <bool kBF16, int kRows, int kBlocks>
inline void tile_product(const float* x, int64_t x_stride_m, const void* weight, int64_t K,
                         F32 (&out)[kRows][kBlocks]) {
  using Element = std::conditional_t<kBF16, uint16_t, float>;
  const int64_t stride = packed_block_elements(K);
  const auto* w = static_cast<const Element*>(weight);
  F32 even[kRows][kBlocks], odd[kRows][kBlocks];
  for (int m = 0; m < kRows; ++m)
    for (int b = 0; b < kBlocks; ++b) even[m][b] = odd[m][b] = zero();
  for (int64_t k = 0; k < K; k += 2, w += 32) {
    F32 w_even[kBlocks], w_odd[kBlocks];
#pragma GCC unroll 2
    for (int b = 0; b < kBlocks; ++b) {
      if constexpr (kBF16) {
        load_bf16_pairs(w + b * stride, w_even[b], w_odd[b]);
      } else {
        w_even[b] = load(w + b * stride);
        w_odd[b] = load(w + b * stride + 16);
      }
    }
    const bool pair = k + 1 < K;
#pragma GCC unroll 6
    for (int m = 0; m < kRows; ++m) {
      const F32 x_even = set1(x[m * x_stride_m + k]), x_odd = set1(pair ? x[m * x_stride_m + k + 1] : 0.0f);
#pragma GCC unroll 2
      for (int b = 0; b < kBlocks; ++b) {
        even[m][b] = fma(x_even, w_even[b], even[m][b]);
        odd[m][b] = fma(x_odd, w_odd[b], odd[m][b]);
      }
    }
  }
  for (int m = 0; m < kRows; ++m)
    for (int b = 0; b < kBlocks; ++b) out[m][b] = even[m][b] + odd[m][b];
}

// Output rows [0, M) of kBlocks neighbouring blocks, the first `channels` of their channels, bias added where
// given.
template <bool kBF16, int kRows, int kBlocks>
inline void panel_product(const float* x, int64_t x_stride_m, const void* weight, int64_t K,
                          const float* bias, float* out, int64_t out_stride_m, int64_t M, int channels) {
  int64_t m = 0;
  for (; M - m >= kRows; m += kRows) {
    F32 y[kRows][kBlocks];
    tile_product<kBF16, kRows, kBlocks>(x + m * x_stride_m, x_stride_m, weight, K, y);
    for (int r = 0; r < kRows; ++r) {
      for (int b = 0; b < kBlocks; ++b) {
        const int n = std::min(16, channels - 16 * b);
        if (bias) y[r][b] = y[r][b] + load_n(bias + 16 * b, n);
        store_n(out + (m + r) * out_stride_m + 16 * b, y[r][b], n);
      }
    }
  }
  if constexpr (kRows > 1) {
    if (m < M)
      panel_product<kBF16, kRows - 1, kBlocks>(x + m * x_stride_m, x_stride_m, weight, K, bias,
                                               out + m * out_stride_m, out_stride_m, M - m, channels);
  }
}

}  // namespace pyspec::PYSPEC_ISA
