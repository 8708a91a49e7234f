// SPDX-License-Identifier: Apache-2.0
// over the limit: instruction sets of one interface, kept side by side; NEON's lanes are in vec_neon.h.
// Sixteen f32 (or i32) lanes, the same operations on every instruction set. Included once per (op,
// instruction set) translation unit, inside namespace pyspec::PYSPEC_ISA. Every operation rounds as IEEE f32
// with explicit FMA, and reductions run in one fixed order, so kernels written on it give equal bits on every
// instruction set.
#pragma once

#if !defined(PYSPEC_ISA)
#error "vec.h: PYSPEC_ISA must be defined (setup.py makes one translation unit per op and instruction set)"
#endif

#if defined(__aarch64__)
#include "cpu/vec_neon.h"
#endif

namespace pyspec::PYSPEC_ISA {

constexpr int kLanes = 16;

#if defined(PYSPEC_ISA_AVX512)

struct F32 {
  __m512 v;
};
struct I32 {
  __m512i v;
};

inline F32 zero() { return {_mm512_setzero_ps()}; }
inline F32 set1(float x) { return {_mm512_set1_ps(x)}; }
inline F32 load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, F32 a) { _mm512_storeu_ps(p, a.v); }
// To p, aligned to 64 bytes, without a copy in the caches; seen by others after stored_past_caches().
inline void store_past_caches(float* p, F32 a) { _mm512_stream_ps(p, a.v); }
inline void stored_past_caches() { _mm_sfence(); }
inline F32 load_n(const float* p, int n) { return {_mm512_maskz_loadu_ps(__mmask16((1u << n) - 1), p)}; }
inline void store_n(float* p, F32 a, int n) { _mm512_mask_storeu_ps(p, __mmask16((1u << n) - 1), a.v); }
inline F32 load_bf16(const uint16_t* p) {
  return {_mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16))};
}
inline F32 load_f16(const uint16_t* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
inline void store_f16(uint16_t* p, F32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT));
}
// The even and the odd ones of 32 neighbouring bf16 values (16 pairs), widened.
inline void load_bf16_pairs(const uint16_t* p, F32& even, F32& odd) {
  const __m512i raw = _mm512_loadu_si512(p);
  even.v = _mm512_castsi512_ps(_mm512_slli_epi32(raw, 16));
  odd.v = _mm512_castsi512_ps(_mm512_and_si512(raw, _mm512_set1_epi32(int(0xffff0000))));
}
inline F32 operator+(F32 a, F32 b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F32 operator-(F32 a, F32 b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F32 operator*(F32 a, F32 b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F32 operator/(F32 a, F32 b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F32 fma(F32 a, F32 b, F32 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline F32 max(F32 a, F32 b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F32 min(F32 a, F32 b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F32 abs(F32 a) { return {_mm512_abs_ps(a.v)}; }
// value where x >= limit, else 0 (also for NaN).
inline F32 keep_ge(F32 x, F32 limit, F32 value) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, limit.v, _CMP_GE_OQ), value.v)};
}
inline F32 to_f32(I32 a) { return {_mm512_cvtepi32_ps(a.v)}; }
inline I32 round_i32(F32 a) { return {_mm512_cvtps_epi32(a.v)}; }  // to nearest even
inline I32 bits(F32 a) { return {_mm512_castps_si512(a.v)}; }
inline F32 from_bits(I32 a) { return {_mm512_castsi512_ps(a.v)}; }
inline I32 iset1(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline I32 iload(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
inline void istore(int32_t* p, I32 a) { _mm512_storeu_si512(p, a.v); }
inline I32 operator+(I32 a, I32 b) { return {_mm512_add_epi32(a.v, b.v)}; }
inline I32 operator-(I32 a, I32 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
inline I32 operator&(I32 a, I32 b) { return {_mm512_and_si512(a.v, b.v)}; }
template <int kBits>
inline I32 shift_left(I32 a) {
  return {_mm512_slli_epi32(a.v, kBits)};
}
template <int kBits>
inline I32 shift_right(I32 a) {  // arithmetic
  return {_mm512_srai_epi32(a.v, kBits)};
}
inline void store_i8(int8_t* p, I32 a) {  // saturating
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(a.v));
}
inline I32 max(I32 a, I32 b) { return {_mm512_max_epi32(a.v, b.v)}; }
inline int32_t reduce_add(I32 a) { return _mm512_reduce_add_epi32(a.v); }
inline int32_t reduce_max(I32 a) { return _mm512_reduce_max_epi32(a.v); }
// The same as load_bf16_pairs for f16.
inline void load_f16_pairs(const uint16_t* p, F32& even, F32& odd) {
  const __m512i raw = _mm512_loadu_si512(p);
  even.v = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(raw));
  odd.v = _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(raw, 16)));
}

#elif defined(PYSPEC_ISA_AVX2)

struct F32 {
  __m256 lo, hi;
};
struct I32 {
  __m256i lo, hi;
};

inline F32 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline F32 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline F32 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, F32 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
inline void store_past_caches(float* p, F32 a) {
  _mm256_stream_ps(p, a.lo);
  _mm256_stream_ps(p + 8, a.hi);
}
inline void stored_past_caches() { _mm_sfence(); }
inline F32 load_n(const float* p, int n) {
  alignas(32) float t[16] = {};
  for (int i = 0; i < n; ++i) t[i] = p[i];
  return load(t);
}
inline void store_n(float* p, F32 a, int n) {
  alignas(32) float t[16];
  store(t, a);
  for (int i = 0; i < n; ++i) p[i] = t[i];
}
inline __m256 bf16_half(const uint16_t* p) {
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
}
inline F32 load_bf16(const uint16_t* p) { return {bf16_half(p), bf16_half(p + 8)}; }
inline F32 load_f16(const uint16_t* p) {
  return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
inline void store_f16(uint16_t* p, F32 a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(a.lo, _MM_FROUND_TO_NEAREST_INT));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(a.hi, _MM_FROUND_TO_NEAREST_INT));
}
inline void load_bf16_pairs(const uint16_t* p, F32& even, F32& odd) {
  const __m256i mask = _mm256_set1_epi32(int(0xffff0000));
  const __m256i lo = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i hi = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16));
  even = {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
  odd = {_mm256_castsi256_ps(_mm256_and_si256(lo, mask)), _mm256_castsi256_ps(_mm256_and_si256(hi, mask))};
}
inline F32 operator+(F32 a, F32 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
inline F32 operator-(F32 a, F32 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
inline F32 operator*(F32 a, F32 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
inline F32 operator/(F32 a, F32 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
inline F32 fma(F32 a, F32 b, F32 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline F32 max(F32 a, F32 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
inline F32 min(F32 a, F32 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
inline F32 abs(F32 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
inline F32 keep_ge(F32 x, F32 limit, F32 value) {
  return {_mm256_and_ps(_mm256_cmp_ps(x.lo, limit.lo, _CMP_GE_OQ), value.lo),
          _mm256_and_ps(_mm256_cmp_ps(x.hi, limit.hi, _CMP_GE_OQ), value.hi)};
}
inline F32 to_f32(I32 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
inline I32 round_i32(F32 a) { return {_mm256_cvtps_epi32(a.lo), _mm256_cvtps_epi32(a.hi)}; }
inline I32 bits(F32 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }
inline F32 from_bits(I32 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
inline I32 iset1(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline I32 iload(const int32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
}
inline void istore(int32_t* p, I32 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), a.hi);
}
inline I32 operator+(I32 a, I32 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
inline I32 operator-(I32 a, I32 b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
inline I32 operator&(I32 a, I32 b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
template <int kBits>
inline I32 shift_left(I32 a) {
  return {_mm256_slli_epi32(a.lo, kBits), _mm256_slli_epi32(a.hi, kBits)};
}
template <int kBits>
inline I32 shift_right(I32 a) {
  return {_mm256_srai_epi32(a.lo, kBits), _mm256_srai_epi32(a.hi, kBits)};
}
inline void store_i8(int8_t* p, I32 a) {
  alignas(32) int32_t t[16];
  istore(t, a);
  for (int i = 0; i < 16; ++i) p[i] = int8_t(t[i] < -128 ? -128 : t[i] > 127 ? 127 : t[i]);
}
inline I32 max(I32 a, I32 b) { return {_mm256_max_epi32(a.lo, b.lo), _mm256_max_epi32(a.hi, b.hi)}; }
inline int32_t reduce_add(I32 a) {
  alignas(32) int32_t t[16];
  istore(t, a);
  int32_t sum = 0;
  for (int i = 0; i < 16; ++i) sum += t[i];
  return sum;
}
inline int32_t reduce_max(I32 a) {
  alignas(32) int32_t t[16];
  istore(t, a);
  int32_t most = t[0];
  for (int i = 1; i < 16; ++i) most = t[i] > most ? t[i] : most;
  return most;
}
inline __m256 f16_pair_half(__m256i words) {  // the low 16 bits of 8 words
  const __m256i packed = _mm256_packus_epi32(_mm256_and_si256(words, _mm256_set1_epi32(0xffff)), words);
  return _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08)));
}
inline void load_f16_pairs(const uint16_t* p, F32& even, F32& odd) {
  const __m256i lo = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i hi = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 16));
  even = {f16_pair_half(lo), f16_pair_half(hi)};
  odd = {f16_pair_half(_mm256_srli_epi32(lo, 16)), f16_pair_half(_mm256_srli_epi32(hi, 16))};
}

#elif !defined(__aarch64__)  // generic: arrays that the compiler vectorises

struct F32 {
  alignas(64) float v[16];
};
struct I32 {
  alignas(64) int32_t v[16];
};

#define PYSPEC_EACH _Pragma("GCC unroll 16") for (int i = 0; i < 16; ++i)
inline F32 set1(float x) {
  F32 r;
  PYSPEC_EACH r.v[i] = x;
  return r;
}
inline F32 zero() { return set1(0.0f); }
inline F32 load(const float* p) {
  F32 r;
  PYSPEC_EACH r.v[i] = p[i];
  return r;
}
inline void store(float* p, F32 a) { PYSPEC_EACH p[i] = a.v[i]; }
inline void store_past_caches(float* p, F32 a) { store(p, a); }
inline void stored_past_caches() {}
inline F32 load_n(const float* p, int n) {
  F32 r = zero();
  for (int i = 0; i < n; ++i) r.v[i] = p[i];
  return r;
}
inline void store_n(float* p, F32 a, int n) {
  for (int i = 0; i < n; ++i) p[i] = a.v[i];
}
inline F32 load_bf16(const uint16_t* p) {
  F32 r;
  PYSPEC_EACH r.v[i] = bf16_to_f32(p[i]);
  return r;
}
inline F32 load_f16(const uint16_t* p) {
  F32 r;
  PYSPEC_EACH r.v[i] = f16_to_f32(p[i]);
  return r;
}
inline void store_f16(uint16_t* p, F32 a) { PYSPEC_EACH p[i] = f32_to_f16(a.v[i]); }
inline void load_bf16_pairs(const uint16_t* p, F32& even, F32& odd) {
  PYSPEC_EACH {
    even.v[i] = bf16_to_f32(p[2 * i]);
    odd.v[i] = bf16_to_f32(p[2 * i + 1]);
  }
}
#define PYSPEC_BINARY(T, name, expression) \
  inline T name(T a, T b) {                \
    T r;                                   \
    PYSPEC_EACH r.v[i] = (expression);     \
    return r;                              \
  }
PYSPEC_BINARY(F32, operator+, a.v[i] + b.v[i])
PYSPEC_BINARY(F32, operator-, a.v[i] - b.v[i])
PYSPEC_BINARY(F32, operator*, a.v[i] * b.v[i])
PYSPEC_BINARY(F32, operator/, a.v[i] / b.v[i])
PYSPEC_BINARY(F32, max, a.v[i] > b.v[i] ? a.v[i] : b.v[i])
PYSPEC_BINARY(F32, min, a.v[i] < b.v[i] ? a.v[i] : b.v[i])
PYSPEC_BINARY(I32, operator+, a.v[i] + b.v[i])
PYSPEC_BINARY(I32, operator-, a.v[i] - b.v[i])
PYSPEC_BINARY(I32, operator&, a.v[i] & b.v[i])
#undef PYSPEC_BINARY
inline F32 fma(F32 a, F32 b, F32 c) {
  F32 r;
  PYSPEC_EACH r.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
  return r;
}
inline F32 keep_ge(F32 x, F32 limit, F32 value) {
  PYSPEC_EACH value.v[i] = x.v[i] >= limit.v[i] ? value.v[i] : 0.0f;
  return value;
}
inline F32 abs(F32 a) {
  PYSPEC_EACH a.v[i] = __builtin_fabsf(a.v[i]);
  return a;
}
inline F32 to_f32(I32 a) {
  F32 r;
  PYSPEC_EACH r.v[i] = float(a.v[i]);
  return r;
}
inline I32 round_i32(F32 a) {
  I32 r;
  PYSPEC_EACH r.v[i] = int32_t(__builtin_rintf(a.v[i]));
  return r;
}
inline I32 bits(F32 a) {
  I32 r;
  std::memcpy(&r, &a, sizeof r);
  return r;
}
inline F32 from_bits(I32 a) {
  F32 r;
  std::memcpy(&r, &a, sizeof r);
  return r;
}
inline I32 iset1(int32_t x) {
  I32 r;
  PYSPEC_EACH r.v[i] = x;
  return r;
}
inline I32 iload(const int32_t* p) {
  I32 r;
  PYSPEC_EACH r.v[i] = p[i];
  return r;
}
inline void istore(int32_t* p, I32 a) { PYSPEC_EACH p[i] = a.v[i]; }
template <int kBits>
inline I32 shift_left(I32 a) {
  PYSPEC_EACH a.v[i] = int32_t(uint32_t(a.v[i]) << kBits);
  return a;
}
template <int kBits>
inline I32 shift_right(I32 a) {
  PYSPEC_EACH a.v[i] >>= kBits;
  return a;
}
inline void store_i8(int8_t* p, I32 a) {
  PYSPEC_EACH p[i] = int8_t(a.v[i] < -128 ? -128 : a.v[i] > 127 ? 127 : a.v[i]);
}
inline I32 max(I32 a, I32 b) {
  PYSPEC_EACH a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i];
  return a;
}
inline int32_t reduce_add(I32 a) {
  int32_t sum = 0;
  PYSPEC_EACH sum += a.v[i];
  return sum;
}
inline int32_t reduce_max(I32 a) {
  int32_t most = a.v[0];
  PYSPEC_EACH most = a.v[i] > most ? a.v[i] : most;
  return most;
}
inline void load_f16_pairs(const uint16_t* p, F32& even, F32& odd) {
  PYSPEC_EACH {
    even.v[i] = f16_to_f32(p[2 * i]);
    odd.v[i] = f16_to_f32(p[2 * i + 1]);
  }
}
#undef PYSPEC_EACH

#endif

// Lane i is added to lane i + 8, then i + 4, i + 2, i + 1: one order everywhere. Maxima likewise.
#if defined(PYSPEC_ISA_AVX512) || defined(PYSPEC_ISA_AVX2)
#if defined(PYSPEC_ISA_AVX512)
inline __m256 lower(F32 a) { return _mm512_castps512_ps256(a.v); }
inline __m256 upper(F32 a) { return _mm512_extractf32x8_ps(a.v, 1); }
#else
inline __m256 lower(F32 a) { return a.lo; }
inline __m256 upper(F32 a) { return a.hi; }
#endif
inline float reduce_add(F32 a) {
  const __m256 x8 = _mm256_add_ps(lower(a), upper(a));
  const __m128 x4 = _mm_add_ps(_mm256_castps256_ps128(x8), _mm256_extractf128_ps(x8, 1));
  const __m128 x2 = _mm_add_ps(x4, _mm_movehl_ps(x4, x4));
  return _mm_cvtss_f32(_mm_add_ss(x2, _mm_movehdup_ps(x2)));
}
inline float reduce_max(F32 a) {
  const __m256 x8 = _mm256_max_ps(lower(a), upper(a));
  const __m128 x4 = _mm_max_ps(_mm256_castps256_ps128(x8), _mm256_extractf128_ps(x8, 1));
  const __m128 x2 = _mm_max_ps(x4, _mm_movehl_ps(x4, x4));
  return _mm_cvtss_f32(_mm_max_ss(x2, _mm_movehdup_ps(x2)));
}
#elif !defined(__aarch64__)
inline float reduce_add(F32 a) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) a.v[i] += a.v[i + half];
  return a.v[0];
}
inline float reduce_max(F32 a) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; ++i) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
  return a.v[0];
}
#endif
// Round to nearest even; NaN stays NaN.
#if defined(PYSPEC_ISA_AVX512)
inline void store_bf16(uint16_t* p, F32 a) {
  const __m512i x = _mm512_castps_si512(a.v), high = _mm512_srli_epi32(x, 16);
  const __m512i odd = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i rounded =
      _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(0x7fff)), odd), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i result = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(result));
}
#else
inline void store_bf16(uint16_t* p, F32 a) {
  alignas(64) float t[16];
  store(t, a);
  for (int i = 0; i < 16; ++i) p[i] = f32_to_bf16(t[i]);
}
#endif
// 2^x for x <= 127 by a polynomial of degree 6 on [-1/2, 1/2] (relative error 2e-7); exactly 0 below -126.
inline F32 exp2(F32 x) {
  const F32 magic = set1(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const F32 lowest = set1(-126.0f), clamped = max(x, lowest);
  const F32 shifted = clamped + magic;
  const F32 f = clamped - (shifted - magic);
  F32 p = set1(1.5403530394e-4f);
  p = fma(p, f, set1(1.3333558146e-3f));
  p = fma(p, f, set1(9.6181291076e-3f));
  p = fma(p, f, set1(5.5504108665e-2f));
  p = fma(p, f, set1(2.4022650696e-1f));
  p = fma(p, f, set1(6.9314718056e-1f));
  p = fma(p, f, set1(1.0f));
  return keep_ge(x, lowest, from_bits(bits(p) + shift_left<23>(bits(shifted))));
}

}  // namespace pyspec::PYSPEC_ISA
