// SPDX-License-Identifier: Apache-2.0
// Element types of kernel arguments, and scalar conversions of the 16-bit ones.
#pragma once

#include <cstdint>
#include <cstring>

namespace pyspec {

enum class DType : int { kF32, kBF16, kF16, kF8, kI8 };  // kF8: e4m3, without infinities

inline int64_t size_of(DType dtype) { return dtype == DType::kF32 ? 4 : dtype < DType::kF8 ? 2 : 1; }

inline float bits_to_f32(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
inline uint32_t f32_to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}
inline float bf16_to_f32(uint16_t x) { return bits_to_f32(uint32_t(x) << 16); }
inline uint16_t f32_to_bf16(float x) {  // round to nearest even; NaN stays NaN
  const uint32_t u = f32_to_bits(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return uint16_t(u >> 16 | 0x40);
  return uint16_t((u + 0x7fff + (u >> 16 & 1)) >> 16);
}
inline float f16_to_f32(uint16_t x) {
  const uint32_t sign = uint32_t(x & 0x8000) << 16, exponent = x >> 10 & 31, mantissa = x & 0x3ff;
  if (exponent == 31) return bits_to_f32(sign | 0x7f800000u | mantissa << 13);
  if (exponent) return bits_to_f32(sign | (exponent + 112) << 23 | mantissa << 13);
  const float tiny = float(mantissa) * 0x1p-24f;  // subnormal
  return sign ? -tiny : tiny;
}
inline uint16_t f32_to_f16(float x) {  // round to nearest even; overflow to infinity
  const uint32_t u = f32_to_bits(x), sign = u >> 16 & 0x8000, magnitude = u & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return uint16_t(sign | 0x7e00);
  if (magnitude >= 0x477ff000u) return uint16_t(sign | 0x7c00);
  if (magnitude < 0x38800000u) {  // subnormal: adding 1/2 puts units of 2^-24 into the lowest mantissa bits
    return uint16_t(sign | (f32_to_bits(bits_to_f32(magnitude) + 0.5f) - 0x3f000000u));
  }
  return uint16_t(sign | (magnitude - 0x38000000u + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

}  // namespace pyspec
