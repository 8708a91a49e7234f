// SPDX-License-Identifier: Apache-2.0
// GGUF rows to packed blocks (pyspec/quant_format.h), one channel at a time. Included inside
// pyspec::PYSPEC_ISA.
#pragma once

namespace pyspec::PYSPEC_ISA {

inline uint16_t read_u16(const uint8_t* p) { return uint16_t(p[0] | p[1] << 8); }

// A GGUF block as values and, per 16 k, scale and minimum; formats of 32 k have two equal halves.
struct QuantBlock {
  uint8_t q[256];
  float d[16], min[16];
};

inline void read_block32(QuantFormat format, const uint8_t* p, QuantBlock& b) {
  const bool has_min = format == QuantFormat::kQ4_1;
  b.d[0] = b.d[1] = f16_to_f32(read_u16(p));
  b.min[0] = b.min[1] = has_min ? f16_to_f32(read_u16(p + 2)) : 0.0f;
  if (format == QuantFormat::kQ8_0) {
    for (int k = 0; k < 32; ++k) b.q[k] = uint8_t(p[2 + k] ^ 0x80);
    return;
  }
  const bool five = format == QuantFormat::kQ5_0;
  const uint8_t *high = p + 2, *nibbles = p + (has_min ? 4 : five ? 6 : 2);
  for (int k = 0; k < 16; ++k) {
    b.q[k] = nibbles[k] & 15;
    b.q[16 + k] = nibbles[k] >> 4;
    if (!five) continue;
    b.q[k] |= uint8_t((high[k / 8] >> k % 8 & 1) << 4);
    b.q[16 + k] |= uint8_t((high[2 + k / 8] >> k % 8 & 1) << 4);
  }
}

inline void read_q4_k(const uint8_t* p, QuantBlock& b) {
  const float d = f16_to_f32(read_u16(p)), dmin = f16_to_f32(read_u16(p + 2));
  const uint8_t *s = p + 4, *nibbles = p + 16;
  for (int j = 0; j < 8; ++j) {  // 6-bit scales and minima in 12 bytes
    const int scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | s[j - 4] >> 6 << 4;
    const int low = j < 4 ? s[j + 4] & 63 : s[j + 4] >> 4 | s[j] >> 6 << 4;
    b.d[2 * j] = b.d[2 * j + 1] = d * float(scale);
    b.min[2 * j] = b.min[2 * j + 1] = -(dmin * float(low));
    for (int k = 0; k < 32; ++k)
      b.q[32 * j + k] = j % 2 ? nibbles[j / 2 * 32 + k] >> 4 : nibbles[j / 2 * 32 + k] & 15;
  }
}

inline void read_q6_k(const uint8_t* p, QuantBlock& b) {
  const float d = f16_to_f32(read_u16(p + 208));
  for (int j = 0; j < 16; ++j) {
    b.d[j] = d * float(int8_t(p[192 + j]));
    b.min[j] = 0.0f;
  }
  for (int k = 0; k < 256; ++k) {  // halves of 128 k: 64 bytes of low nibbles, 32 bytes of high bit pairs
    const int half = k / 128, i = k % 128;
    const int low = p[half * 64 + i % 64] >> (i / 64 * 4) & 15;
    const int high = p[128 + half * 32 + i % 32] >> (i / 32 * 2) & 3;
    b.q[k] = uint8_t(low | high << 4);
  }
}

inline void read_block(QuantFormat format, const uint8_t* p, QuantBlock& b) {
  if (format == QuantFormat::kQ4_K) {
    read_q4_k(p, b);
  } else if (format == QuantFormat::kQ6_K) {
    read_q6_k(p, b);
  } else {
    read_block32(format, p, b);
  }
}

// Power of two that brings the largest scale or minimum of a K-quant row into [2^13, 2^14): scale * 6-bit
// factor is no f16, and rounded at this height (to 2^-11 of itself) it is never subnormal unless it is below
// 2^-27 of the largest.
inline float row_multiplier(QuantFormat format, int64_t K, const uint8_t* row) {
  if (info(format).block_k == 32) return 1.0f;
  QuantBlock b;
  float most = 0.0f;
  for (int64_t k = 0; k < K; k += 256, row += info(format).block_bytes) {
    read_block(format, row, b);
    for (int j = 0; j < 16; ++j) most = std::max({most, std::fabs(b.d[j]), std::fabs(b.min[j])});
  }
  if (most == 0.0f || !(most < std::numeric_limits<float>::infinity())) return 1.0f;
  int exponent;
  std::frexp(most, &exponent);
  return std::ldexp(1.0f, exponent - 14);
}

// Packs one GGUF row into lane c of a block whose bytes were zero.
inline void pack_channel(QuantFormat format, int64_t K, const uint8_t* row, uint8_t* block, int c) {
  const QuantFormatInfo& f = info(format);
  const float multiplier = row_multiplier(format, K, row), inverse = 1.0f / multiplier;
  std::memcpy(block + 4 * c, &multiplier, 4);
  uint8_t* values = block + values_offset(format, K);
  QuantBlock b;
  for (int64_t k0 = 0; k0 < K; k0 += f.block_k, row += f.block_bytes) {
    read_block(format, row, b);
    for (int64_t k = 0; k < f.block_k; k += kGroup) {
      const int64_t g = (k0 + k) / kGroup;
      const uint8_t* q = b.q + k;
      auto* scales = reinterpret_cast<uint16_t*>(block + 64 + g * scale_bytes(format)) + c;
      scales[0] = f32_to_f16(b.d[k / 16] * inverse);
      if (f.has_min) scales[16] = f32_to_f16(b.min[k / 16] * inverse);
      if (f.half_groups) scales[16] = f32_to_f16(b.d[k / 16 + 1] * inverse);
      uint8_t* lines = values + g * value_bytes(format) + 4 * c;
      if (f.bits == 4) {
        for (int i = 0; i < 16; ++i) lines[i / 4 * 64 + i % 4] = uint8_t(q[i] | q[16 + i] << 4);
      } else {
        for (int i = 0; i < 32; ++i) lines[i / 4 * 64 + i % 4] = q[i];
      }
    }
  }
}

// Packs channels [n, n + 16) of N; channels beyond N are zero.
inline void pack_block(QuantFormat format, int64_t N, int64_t K, const uint8_t* weight, int64_t n,
                       uint8_t* block) {
  std::memset(block, 0, size_t(packed_block_bytes(format, K)));
  for (int64_t c = 0; c < std::min(kChannels, N - n); ++c)
    pack_channel(format, K, weight + (n + c) * gguf_row_bytes(format, K), block, int(c));
}

}  // namespace pyspec::PYSPEC_ISA
