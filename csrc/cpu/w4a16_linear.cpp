// SPDX-License-Identifier: Apache-2.0
// CPU w4a16_linear: a block of 16 channels is dequantised to f32 once for all rows, then multiplied like
// linear.
#include "pyspec/w4a16_linear.h"

#include "cpu/kernel.h"
#include "cpu/linear_tile.h"
#include "cpu/transpose.h"

namespace pyspec::PYSPEC_ISA {
namespace {

inline float value(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::kF32) return static_cast<const float*>(data)[i];
  const uint16_t half = static_cast<const uint16_t*>(data)[i];
  return dtype == DType::kBF16 ? bf16_to_f32(half) : f16_to_f32(half);
}

constexpr int64_t kWords = 16;  // of 8 nibbles, of one channel: taken from its row and transposed at once

// Scale and zero point of every group for channels [n, n + 16): [J][2][16]. The last channel stands for those
// that there are not.
void group_factors(const W4A16LinearParams& p, int64_t n, float* factors) {
  for (int64_t c = 0; c < 16; ++c) {
    const int64_t row = std::min(n + c, p.N - 1) * p.J;
    for (int64_t j = 0; j < p.J; ++j) {
      factors[j * 32 + c] = value(p.scales, p.dtype, row + j);
      factors[j * 32 + 16 + c] = p.zeros ? value(p.zeros, p.dtype, row + j) : 8.0f;
    }
  }
}

// Channels [n, n + 16) as f32 [K][16]: (q - zero) * scale, the factors f32.
void dequantise_block(const W4A16LinearParams& p, int64_t n, const float* factors, float* block) {
  const int64_t bytes = p.K / 2;
  for (int64_t first = 0; first < bytes; first += 4 * kWords) {
    I32 words[kWords];
    for (int64_t c = 0; c < 16; ++c) {
      const uint8_t* row = p.qweight + std::min(n + c, p.N - 1) * bytes + first;
      alignas(64) int32_t own[kWords] = {};
      std::memcpy(own, row, size_t(std::min(4 * kWords, bytes - first)));
      words[c] = iload(own);
    }
    transpose(words);  // of channels into words of all channels
    const int64_t end = std::min(p.K, 2 * first + 8 * kWords);
    for (int64_t k0 = 2 * first; k0 < end; k0 += 8) {
      I32 word = words[(k0 - 2 * first) / 8];  // little-endian: the lowest nibble is the first k
      const float* factor = factors + 32 * (k0 / p.group_size);  // of all eight k without g_idx
      F32 scale = load(factor), zero_point = load(factor + 16);
      const int64_t count = std::min<int64_t>(8, end - k0);
      for (int64_t i = 0; i < count; ++i, word = shift_right<4>(word)) {
        if (p.g_idx) {
          factor = factors + 32 * p.g_idx[k0 + i];
          scale = load(factor), zero_point = load(factor + 16);
        }
        store(block + (k0 + i) * 16, (to_f32(word & iset1(15)) - zero_point) * scale);
      }
    }
  }
}

}  // namespace

void w4a16_linear(const W4A16LinearParams& p) {
  if (p.M == 0) return;
  parallel_for((p.N + 15) / 16, [&](int64_t i) {
    auto* block = static_cast<float*>(thread_scratch(size_t(packed_block_elements(p.K) + 32 * p.J) * 4));
    float* factors = block + packed_block_elements(p.K);
    group_factors(p, i * 16, factors);
    dequantise_block(p, i * 16, factors, block);
    panel_product<false, kTileRows, 1>(static_cast<const float*>(p.x), p.x_stride_m, block, p.K, nullptr,
                                       p.out + i * 16, p.N, p.M, int(std::min<int64_t>(16, p.N - i * 16)));
  });
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(w4a16_linear, W4A16LinearParams)
