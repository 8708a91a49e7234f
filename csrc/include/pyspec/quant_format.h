// SPDX-License-Identifier: Apache-2.0
// GGUF block formats, their packed form for CPUs, and the workspace of quantised activations.
//
// Packed form: channels in blocks of 16 (N padded with zero channels), one block after another. A block is
//   float multiplier[16]                              per channel, a power of two (1 but for K-quants)
//   scales, by groups of 32 k: f16 d[16]              (q6_k: d[16] of the first 16 k, d[16] of the other 16)
//                              f16 min[16]            only where the format has a minimum
//   padding to 64 bytes
//   values, by groups of 32 k: 4-bit formats 4 lines of 64 bytes: byte 4 c + j of line r has the value of
//   channel
//                              c at k = 4 r + j in its low and at k = 16 + 4 r + j in its high nibble;
//                              others 8 lines: byte 4 c + j of line r is the value of channel c at k = 4 r +
//                              j
// A value is stored unsigned: weight = multiplier * (d * (value - offset) + min).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace pyspec {

enum class QuantFormat : int { kQ4_0, kQ4_1, kQ5_0, kQ8_0, kQ4_K, kQ6_K };

struct QuantFormatInfo {
  const char* name;
  int block_k, block_bytes;  // of GGUF
  int bits;                  // of a packed value: 4 or 8
  int offset_shift;          // the offset is 2^offset_shift; -1: none
  bool has_min;              // d and min per group
  bool half_groups;          // a scale per 16 k
};

constexpr QuantFormatInfo kQuantFormats[] = {
    {"q4_0", 32, 18, 4, 3, false, false},   {"q4_1", 32, 20, 4, -1, true, false},
    {"q5_0", 32, 22, 8, 4, false, false},   {"q8_0", 32, 34, 8, 7, false, false},
    {"q4_k", 256, 144, 4, -1, true, false}, {"q6_k", 256, 210, 8, 5, false, true},
};
constexpr const QuantFormatInfo& info(QuantFormat format) { return kQuantFormats[int(format)]; }

constexpr int64_t kChannels = 16, kGroup = 32;  // of a packed block

constexpr int64_t gguf_row_bytes(QuantFormat format, int64_t K) {
  return K / info(format).block_k * info(format).block_bytes;
}
constexpr int64_t scale_bytes(QuantFormat format) {  // of one group of a packed block
  return info(format).has_min || info(format).half_groups ? 64 : 32;
}
constexpr int64_t value_bytes(QuantFormat format) { return info(format).bits == 4 ? 256 : 512; }
constexpr int64_t values_offset(QuantFormat format, int64_t K) {
  return (64 + K / kGroup * scale_bytes(format) + 63) / 64 * 64;
}
constexpr int64_t packed_block_bytes(QuantFormat format, int64_t K) {
  return values_offset(format, K) + K / kGroup * value_bytes(format);
}
constexpr int64_t packed_bytes(QuantFormat format, int64_t N, int64_t K) {
  return (N + kChannels - 1) / kChannels * packed_block_bytes(format, K);
}

// M rows of K activations, quantised by quantize_activations_cpu into a workspace of the caller (64-byte
// aligned). Rows lie in tiles of kRowTile (the last one may have fewer: R). Per tile, then group of 32 k: q
// [R][32], scale [R], sum [R] = scale * (integer sum), negative_sums [3][R]: minus the integer sums of the
// group and of its two halves.
constexpr int64_t kRowTile = 8;
struct Activations {
  int8_t* q;
  float *scale, *sum;
  int32_t* negative_sums;
  Activations(void* workspace, int64_t M, int64_t K)
      : q(static_cast<int8_t*>(workspace)),
        scale(reinterpret_cast<float*>(q + (M * K + 63) / 64 * 64)),
        sum(scale + M * K / kGroup),
        negative_sums(reinterpret_cast<int32_t*>(sum + M * K / kGroup)) {}
};
inline int64_t activation_bytes(int64_t M, int64_t K) { return (M * K + 63) / 64 * 64 + M * K / kGroup * 20; }

}  // namespace pyspec
