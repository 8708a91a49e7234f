// SPDX-License-Identifier: Apache-2.0
// The arithmetic of tree_attention.cpp: f32 tiles of 16 lanes, and the functions of a softmax.
#pragma once

#include "cpu/kernel.h"

namespace pyspec::PYSPEC_ISA {

constexpr int kChunk = 256, kBlock = 16, kStep = 32;
constexpr int kScoreStride = kChunk + kBlock;  // floats; not a power of two: rows must not share L1 sets
constexpr float kLog2e = 1.4426950408889634f;
// tanh(x) = x + x z P(z) for z = x^2 <= 1/4: least squares at Chebyshev nodes, relative error 2e-9 before
// rounding.
constexpr float kTanh[5] = {-3.3333332809e-01f, 1.3333227376e-01f, -5.3933787266e-02f, 2.1472710399e-02f,
                            -6.9469843077e-03f};
#if defined(PYSPEC_ISA_AVX512)
constexpr int kRows = 4, kCols = 2;  // 4 x 2 x (even, odd): 16 of 32 registers, 16 FMAs in flight
#else
constexpr int kRows = 2, kCols = 1;
#endif

inline int floor16(int x) { return x & ~15; }
inline int ceil16(int x) { return (x + 15) & ~15; }

// c[r][16 col + lane] (+)= sum over k < n of a[r][k] * b[col][k][lane], in steps: s += e + o.
template <int kR, int kC>
inline void multiply_tile(const float* a, int64_t a_stride, const float* const* b, int64_t b_stride, int n,
                          int step, float* c, int64_t c_stride, bool add) {
  for (int k0 = 0; k0 < n; k0 += step, add = true) {
    F32 even[kR][kC], odd[kR][kC];
    for (int r = 0; r < kR; ++r)
      for (int j = 0; j < kC; ++j) even[r][j] = odd[r][j] = zero();
    const int k1 = k0 + step < n ? k0 + step : n;
    for (int k = k0; k < k1; k += 2) {
      F32 be[kC], bo[kC];
      for (int j = 0; j < kC; ++j) {
        be[j] = load(b[j] + k * b_stride);
        bo[j] = load(b[j] + (k + 1) * b_stride);
      }
      for (int r = 0; r < kR; ++r) {
        const F32 ae = set1(a[r * a_stride + k]), ao = set1(a[r * a_stride + k + 1]);
        for (int j = 0; j < kC; ++j) {
          even[r][j] = fma(ae, be[j], even[r][j]);
          odd[r][j] = fma(ao, bo[j], odd[r][j]);
        }
      }
    }
    for (int r = 0; r < kR; ++r)
      for (int j = 0; j < kC; ++j) {
        float* to = c + r * c_stride + j * kLanes;
        const F32 sum = even[r][j] + odd[r][j];
        store(to, add ? load(to) + sum : sum);
      }
  }
}

template <int kC>
void multiply(int rows, const float* a, int64_t a_stride, const float* const* b, int64_t b_stride, int n,
              int step, float* c, int64_t c_stride, bool add) {
  for (; rows >= kRows; rows -= kRows, a += kRows * a_stride, c += kRows * c_stride)
    multiply_tile<kRows, kC>(a, a_stride, b, b_stride, n, step, c, c_stride, add);
  if (kRows > 3 && rows == 3) multiply_tile<3, kC>(a, a_stride, b, b_stride, n, step, c, c_stride, add);
  if (kRows > 2 && rows == 2) multiply_tile<2, kC>(a, a_stride, b, b_stride, n, step, c, c_stride, add);
  if (rows == 1) multiply_tile<1, kC>(a, a_stride, b, b_stride, n, step, c, c_stride, add);
}

// tanh by exp2 beyond 1/2 and an odd polynomial of degree 11 within (relative error 3e-7).
inline F32 tanh(F32 x) {
  const F32 size = abs(x), t = exp2(size * set1(-2.0f * kLog2e)), z = x * x;
  const F32 large = (set1(1.0f) - t) / (set1(1.0f) + t);
  F32 p = set1(kTanh[4]);
  for (int i = 3; i >= 0; --i) p = fma(p, z, set1(kTanh[i]));
  const F32 small = fma(p * z, size, size), half = set1(0.5f);
  const F32 magnitude = keep_ge(size, half, large) + (small - keep_ge(size, half, small));
  return from_bits(bits(magnitude) + (bits(x) & iset1(int32_t(0x80000000))));
}

inline float exp2_scalar(float x) {
  alignas(64) float lanes[kLanes];
  store(lanes, exp2(set1(x)));
  return lanes[0];
}

}  // namespace pyspec::PYSPEC_ISA
