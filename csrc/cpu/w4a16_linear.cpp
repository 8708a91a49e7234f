// SPDX-License-Identifier: Apache-2.0
// CPU w4a16_linear: a block of 16 channels is dequantised to f32 once for all rows, then multiplied like
// linear.
#include "pyspec/w4a16_linear.h"

#include "cpu/kernel.h"
#include "cpu/linear_tile.h"

namespace pyspec::PYSPEC_ISA {
namespace {

inline float value(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::kF32) return static_cast<const float*>(data)[i];
  const uint16_t half = static_cast<const uint16_t*>(data)[i];
  return dtype == DType::kBF16 ? bf16_to_f32(half) : f16_to_f32(half);
}

// Channels [n, n + 16) as f32 [K][16]: (q - zero) * scale, the factors f32.
void dequantise_block(const W4A16LinearParams& p, int64_t n, float* block) {
  std::memset(block, 0, size_t(packed_block_elements(p.K)) * 4);
  for (int64_t c = 0; c < std::min<int64_t>(16, p.N - n); ++c) {
    const uint8_t* q = p.qweight + (n + c) * (p.K / 2);
    int64_t known = -1;
    float scale = 0.0f, zero_point = 8.0f;
    for (int64_t k = 0; k < p.K; ++k) {
      const int64_t j = p.g_idx ? p.g_idx[k] : k / p.group_size;
      if (j != known) {
        scale = value(p.scales, p.dtype, (n + c) * p.J + j);
        if (p.zeros) zero_point = value(p.zeros, p.dtype, (n + c) * p.J + j);
        known = j;
      }
      block[k * 16 + c] = (float(q[k / 2] >> (k % 2 * 4) & 15) - zero_point) * scale;
    }
  }
}

}  // namespace

void w4a16_linear(const W4A16LinearParams& p) {
  if (p.M == 0) return;
  parallel_for((p.N + 15) / 16, [&](int64_t i) {
    auto* block = static_cast<float*>(thread_scratch(size_t(packed_block_elements(p.K)) * 4));
    dequantise_block(p, i * 16, block);
    panel_product<false, kTileRows, 1>(static_cast<const float*>(p.x), p.x_stride_m, block, p.K, nullptr,
                                       p.out + i * 16, p.N, p.M, int(std::min<int64_t>(16, p.N - i * 16)));
  });
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(w4a16_linear, W4A16LinearParams)
