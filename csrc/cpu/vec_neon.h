// SPDX-License-Identifier: Apache-2.0
// The lanes of vec.h in four NEON registers. Maxima and minima are comparisons, because FMAX and FMIN treat
// NaN differently from the other instruction sets.
#pragma once

namespace pyspec::PYSPEC_ISA {

struct F32 {
  float32x4_t v[4];
};
struct I32 {
  int32x4_t v[4];
};

// r.v[i] by an expression of i, for the four registers.
#define PYSPEC_FOUR(T, expression)                                               \
  T r;                                                                           \
  _Pragma("GCC unroll 4") for (int i = 0; i < 4; ++i) { r.v[i] = (expression); } \
  return r;

inline F32 set1(float x) { PYSPEC_FOUR(F32, vdupq_n_f32(x)) }
inline F32 zero() { return set1(0.0f); }
inline F32 load(const float* p) { PYSPEC_FOUR(F32, vld1q_f32(p + 4 * i)) }
inline void store(float* p, F32 a) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) vst1q_f32(p + 4 * i, a.v[i]);
}
inline void store_past_caches(float* p, F32 a) { store(p, a); }
inline void stored_past_caches() {}
inline F32 load_n(const float* p, int n) {
  float t[16] = {};
  for (int i = 0; i < n; ++i) t[i] = p[i];
  return load(t);
}
inline void store_n(float* p, F32 a, int n) {
  float t[16];
  store(t, a);
  for (int i = 0; i < n; ++i) p[i] = t[i];
}
inline F32 load_bf16(const uint16_t* p) {
  PYSPEC_FOUR(F32, vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p + 4 * i), 16)))
}
inline F32 load_f16(const uint16_t* p) {
  PYSPEC_FOUR(F32, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p + 4 * i))))
}
inline void store_f16(uint16_t* p, F32 a) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) vst1_u16(p + 4 * i, vreinterpret_u16_f16(vcvt_f16_f32(a.v[i])));
}
inline void load_bf16_pairs(const uint16_t* p, F32& even, F32& odd) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const uint32x4_t pairs = vreinterpretq_u32_u16(vld1q_u16(p + 8 * i));
    even.v[i] = vreinterpretq_f32_u32(vshlq_n_u32(pairs, 16));
    odd.v[i] = vreinterpretq_f32_u32(vandq_u32(pairs, vdupq_n_u32(0xffff0000u)));
  }
}
inline void load_f16_pairs(const uint16_t* p, F32& even, F32& odd) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const uint16x4x2_t pairs = vld2_u16(p + 8 * i);
    even.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(pairs.val[0]));
    odd.v[i] = vcvt_f32_f16(vreinterpret_f16_u16(pairs.val[1]));
  }
}
inline F32 operator+(F32 a, F32 b) { PYSPEC_FOUR(F32, vaddq_f32(a.v[i], b.v[i])) }
inline F32 operator-(F32 a, F32 b) { PYSPEC_FOUR(F32, vsubq_f32(a.v[i], b.v[i])) }
inline F32 operator*(F32 a, F32 b) { PYSPEC_FOUR(F32, vmulq_f32(a.v[i], b.v[i])) }
inline F32 operator/(F32 a, F32 b) { PYSPEC_FOUR(F32, vdivq_f32(a.v[i], b.v[i])) }
inline F32 fma(F32 a, F32 b, F32 c) { PYSPEC_FOUR(F32, vfmaq_f32(c.v[i], a.v[i], b.v[i])) }
inline float32x4_t larger(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
inline F32 max(F32 a, F32 b) { PYSPEC_FOUR(F32, larger(a.v[i], b.v[i])) }
inline F32 min(F32 a, F32 b) { PYSPEC_FOUR(F32, vbslq_f32(vcltq_f32(a.v[i], b.v[i]), a.v[i], b.v[i])) }
inline F32 abs(F32 a) { PYSPEC_FOUR(F32, vabsq_f32(a.v[i])) }
inline F32 keep_ge(F32 x, F32 limit, F32 value) {
  PYSPEC_FOUR(
      F32, vreinterpretq_f32_u32(vandq_u32(vcgeq_f32(x.v[i], limit.v[i]), vreinterpretq_u32_f32(value.v[i]))))
}
inline F32 to_f32(I32 a) { PYSPEC_FOUR(F32, vcvtq_f32_s32(a.v[i])) }
inline I32 round_i32(F32 a) { PYSPEC_FOUR(I32, vcvtnq_s32_f32(a.v[i])) }  // to nearest even
inline I32 bits(F32 a) { PYSPEC_FOUR(I32, vreinterpretq_s32_f32(a.v[i])) }
inline F32 from_bits(I32 a) { PYSPEC_FOUR(F32, vreinterpretq_f32_s32(a.v[i])) }
inline I32 iset1(int32_t x) { PYSPEC_FOUR(I32, vdupq_n_s32(x)) }
inline I32 iload(const int32_t* p) { PYSPEC_FOUR(I32, vld1q_s32(p + 4 * i)) }
inline void istore(int32_t* p, I32 a) {
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) vst1q_s32(p + 4 * i, a.v[i]);
}
inline I32 operator+(I32 a, I32 b) { PYSPEC_FOUR(I32, vaddq_s32(a.v[i], b.v[i])) }
inline I32 operator-(I32 a, I32 b) { PYSPEC_FOUR(I32, vsubq_s32(a.v[i], b.v[i])) }
inline I32 operator&(I32 a, I32 b) { PYSPEC_FOUR(I32, vandq_s32(a.v[i], b.v[i])) }
template <int kBits>
inline I32 shift_left(I32 a) {
  PYSPEC_FOUR(I32, vshlq_n_s32(a.v[i], kBits))
}
template <int kBits>
inline I32 shift_right(I32 a) {  // arithmetic
  PYSPEC_FOUR(I32, vshrq_n_s32(a.v[i], kBits))
}
inline void store_i8(int8_t* p, I32 a) {  // saturating
  const int16x8_t low = vcombine_s16(vqmovn_s32(a.v[0]), vqmovn_s32(a.v[1]));
  const int16x8_t high = vcombine_s16(vqmovn_s32(a.v[2]), vqmovn_s32(a.v[3]));
  vst1q_s8(p, vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
}
inline I32 max(I32 a, I32 b) { PYSPEC_FOUR(I32, vmaxq_s32(a.v[i], b.v[i])) }
inline int32_t reduce_add(I32 a) {
  return vaddvq_s32(vaddq_s32(vaddq_s32(a.v[0], a.v[1]), vaddq_s32(a.v[2], a.v[3])));
}
inline int32_t reduce_max(I32 a) {
  return vmaxvq_s32(vmaxq_s32(vmaxq_s32(a.v[0], a.v[1]), vmaxq_s32(a.v[2], a.v[3])));
}
#undef PYSPEC_FOUR

// In the order that vec.h gives.
inline float reduce_add(F32 a) {
  const float32x4_t x4 = vaddq_f32(vaddq_f32(a.v[0], a.v[2]), vaddq_f32(a.v[1], a.v[3]));
  const float32x2_t x2 = vadd_f32(vget_low_f32(x4), vget_high_f32(x4));
  return vget_lane_f32(x2, 0) + vget_lane_f32(x2, 1);
}
inline float reduce_max(F32 a) {
  const float32x4_t x4 = larger(larger(a.v[0], a.v[2]), larger(a.v[1], a.v[3]));
  const float32x4_t x2 = larger(x4, vextq_f32(x4, x4, 2));
  return vgetq_lane_f32(larger(x2, vextq_f32(x2, x2, 1)), 0);
}

}  // namespace pyspec::PYSPEC_ISA
