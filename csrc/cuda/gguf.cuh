// SPDX-License-Identifier: Apache-2.0
// Values and scales of a GGUF block, as pyspec/spec/quant_formats.py defines them, for quant_linear and
// quant_embedding. Blocks have 18 to 210 bytes: they are aligned to 2 bytes only, and read by twos.
//
// Planted bugs: 21 the fifth bit of q5_0 one off, 22 high bits of q6_k of another quarter, 23
// high bits of q4_k scales dropped.
#pragma once

#include "cuda/ptx.cuh"
#include "pyspec/quant_format.h"

namespace pyspec::cuda {

__device__ inline uint32_t read_16(const uint8_t* p) { return *reinterpret_cast<const uint16_t*>(p); }
__device__ inline uint32_t read_32(const uint8_t* p) { return read_16(p) | read_16(p + 2) << 16; }
__device__ inline float read_half(const uint8_t* p) {
  return __half2float(__ushort_as_half(uint16_t(read_16(p))));
}

// Scale of a group, and its minimum where the format has one.
struct GroupScale {
  float d, min;
};

// That of the group of 32 (16 in q6_k) with index j in its block: products of f16 and integers, exact in f32.
template <QuantFormat kFormat>
__device__ inline GroupScale exact_scale(const uint8_t* block, int j) {
  if constexpr (kFormat == QuantFormat::kQ4_K) {  // 6-bit scales and minima in 12 bytes
    const uint8_t* s = block + 4;
    const int high = PYSPEC_PLANTED(23) ? 0 : 1;
    const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | high * (s[j - 4] >> 6 << 4);
    const int low = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | high * (s[j] >> 6 << 4);
    return {read_half(block) * float(scale), -(read_half(block + 2) * float(low))};
  } else if constexpr (kFormat == QuantFormat::kQ6_K) {
    return {read_half(block + 208) * float(int8_t(block[192 + j])), 0.0f};
  } else {
    return {read_half(block), kFormat == QuantFormat::kQ4_1 ? read_half(block + 2) : 0.0f};
  }
}

// Four bytes minus a power of two, where no byte exceeds 127 + kOffset.
template <int kOffset>
__device__ inline uint32_t minus(uint32_t bytes) {
  if constexpr (kOffset == 0) return bytes;
  return ((bytes | 0x80808080u) - kOffset * 0x01010101u) ^ 0x80808080u;  // the set bits take the borrows
}

// Values k .. k + 3 (k a multiple of 4) of a block as four signed bytes.
template <QuantFormat kFormat>
__device__ inline uint32_t read_values(const uint8_t* block, int k) {
  constexpr uint32_t kNibbles = 0x0f0f0f0fu;
  if constexpr (kFormat == QuantFormat::kQ8_0) {
    return read_32(block + 2 + k);
  } else if constexpr (kFormat == QuantFormat::kQ4_K) {  // 64 values in 32 bytes, the low nibbles first
    return read_32(block + 16 + k / 64 * 32 + k % 32) >> (k / 32 % 2 * 4) & kNibbles;
  } else if constexpr (kFormat ==
                       QuantFormat::kQ6_K) {  // halves of 128: 64 bytes of low nibbles, 32 of high pairs
    const int half = k / 128, i = k % 128, quarter = PYSPEC_PLANTED(22) ? 3 - i / 32 : i / 32;
    const uint32_t low = read_32(block + half * 64 + i % 64) >> (i / 64 * 4) & kNibbles;
    const uint32_t high = read_32(block + 128 + half * 32 + i % 32) >> (quarter * 2) & 0x03030303u;
    return minus<32>(low | high << 4);
  } else {  // the low nibble of byte i is value i, its high nibble value i + 16
    constexpr int kHead = kFormat == QuantFormat::kQ4_0 ? 2 : kFormat == QuantFormat::kQ4_1 ? 4 : 6;
    const uint32_t low = read_32(block + kHead + k % 16) >> (k / 16 * 4) & kNibbles;
    if constexpr (kFormat == QuantFormat::kQ5_0) {
      const uint32_t fifth = read_32(block + 2) >> (PYSPEC_PLANTED(21) ? k + 1 : k) & 15;
      return minus<16>(low | (fifth * 0x00204081u & 0x01010101u) << 4);  // bit i goes to byte i
    }
    return minus<kFormat == QuantFormat::kQ4_0 ? 8 : 0>(low);
  }
}

// Rounded to the 11 bits of f16, ties to even, at any exponent. The packed form rounds at a power of two per
// row, which is the same but for scales below 2^-27 of the row's largest.
__device__ inline float rounded_11(float x) {
  const uint32_t bits = __float_as_uint(x);
  return __uint_as_float((bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu);
}

}  // namespace pyspec::cuda
