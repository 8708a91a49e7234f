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
constexpr int kRows = 6, kCols = 2;  // 6 x 2 x (even, odd): 24 of 32 registers, and 4 operands
#else
constexpr int kRows = 2, kCols = 1;
#endif

inline int floor16(int x) { return x & ~15; }
inline int ceil16(int x) { return (x + 15) & ~15; }

template <DType kType>
struct Element {
  using T = uint16_t;
};
template <>
struct Element<DType::kF32> {
  using T = float;
};
template <>
struct Element<DType::kI8> {
  using T = int8_t;
};
#if defined(PYSPEC_ISA_AVX512)
inline F32 load_i8(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
#elif defined(PYSPEC_ISA_AVX2)
inline __m256 i8_half(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline F32 load_i8(const int8_t* p) { return {i8_half(p), i8_half(p + 8)}; }
#else
inline F32 load_i8(const int8_t* p) {
  float t[kLanes];
  for (int i = 0; i < kLanes; ++i) t[i] = float(p[i]);
  return load(t);
}
#endif
template <DType kType>
inline F32 widen(const typename Element<kType>::T* p) {
  if constexpr (kType == DType::kF32) return load(p);
  if constexpr (kType == DType::kBF16) return load_bf16(p);
  if constexpr (kType == DType::kF16) return load_f16(p);
  if constexpr (kType == DType::kI8) return load_i8(p);
}
// Rows k (even) and k + 1 of a tiled operand, whose rows are `stride` elements: pairs of 16-bit elements lie
// together.
template <DType kType>
inline void widen_rows(const typename Element<kType>::T* p, int64_t stride, F32& even, F32& odd) {
  if constexpr (kType == DType::kBF16) {
    load_bf16_pairs(p, even, odd);
  } else if constexpr (kType == DType::kF16) {
    load_f16_pairs(p, even, odd);
  } else {
    even = widen<kType>(p);
    odd = widen<kType>(p + stride);
  }
}

// c[r][16 col + lane] (+)= sum over k < n of a[r][k] * b[col][k][lane], in steps: s += e + o.
template <DType kType, int kR, int kC>
inline void multiply_tile(const float* a, int64_t a_stride, const typename Element<kType>::T* const* b,
                          int64_t b_stride, int n, int step, float* c, int64_t c_stride, bool add) {
  for (int k0 = 0; k0 < n; k0 += step, add = true) {
    F32 even[kR][kC], odd[kR][kC];
    for (int r = 0; r < kR; ++r)
      for (int j = 0; j < kC; ++j) even[r][j] = odd[r][j] = zero();
    const int k1 = k0 + step < n ? k0 + step : n;
    for (int k = k0; k < k1; k += 2) {
      F32 be[kC], bo[kC];
      for (int j = 0; j < kC; ++j) widen_rows<kType>(b[j] + k * b_stride, b_stride, be[j], bo[j]);
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

template <DType kType, int kC, int kR, typename... Args>
inline void multiply_rows(int rows, Args... args) {
  if (rows == kR) return multiply_tile<kType, kR, kC>(args...);
  if constexpr (kR > 1) multiply_rows<kType, kC, kR - 1>(rows, args...);
}

// All rows, in tiles of equal sizes.
template <DType kType, int kC>
void multiply(int rows, const float* a, int64_t a_stride, const typename Element<kType>::T* const* b,
              int64_t b_stride, int n, int step, float* c, int64_t c_stride, bool add) {
  for (int tiles = (rows + kRows - 1) / kRows; tiles > 0; --tiles) {
    const int count = (rows + tiles - 1) / tiles;
    multiply_rows<kType, kC, kRows>(count, a, a_stride, b, b_stride, n, step, c, c_stride, add);
    rows -= count;
    a += count * a_stride;
    c += count * c_stride;
  }
}

// out[r][0, D) += the weights of row r times n rows of v, `stride` elements apart.
template <DType kType>
void add_weighted(int rows, const float* weights, const typename Element<kType>::T* v, int64_t stride, int n,
                  float* out, int D) {
  constexpr int kWidth = sizeof *v == 2 ? 2 : 1;  // rows of 16-bit values lie in pairs
  int d = 0;
  for (; kCols == 2 && d + 2 * kLanes <= D; d += 2 * kLanes) {
    const typename Element<kType>::T* b[2] = {v + d * kWidth, v + (d + kLanes) * kWidth};
    multiply<kType, kCols>(rows, weights, kScoreStride, b, stride, n, kBlock, out + d, D, true);
  }
  for (; d < D; d += kLanes) {
    const typename Element<kType>::T* b = v + d * kWidth;
    multiply<kType, 1>(rows, weights, kScoreStride, &b, stride, n, kBlock, out + d, D, true);
  }
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
