// SPDX-License-Identifier: Apache-2.0
// CPU linear. One item is one panel (1 or 2 blocks of 16 channels) for some rows.
#include "pyspec/linear.h"

#include "cpu/kernel.h"
#include "cpu/linear_tile.h"
#include "cpu/weight_pack.h"

namespace pyspec::PYSPEC_ISA {
namespace {

constexpr int64_t kChunkBytes = 524288;  // of x: the rows of an item stay in L2 while panels go by

template <bool kBF16>
void run(const LinearParams& p) {
  const int64_t block_bytes = packed_block_elements(p.K) * size_of(p.dtype), blocks = (p.N + 15) / 16;
  const int64_t panels = (blocks + kTileBlocks - 1) / kTileBlocks;
  const int64_t chunk =
      p.packed ? std::max<int64_t>(48, kChunkBytes / std::max<int64_t>(1, 4 * p.K) / 12 * 12) : p.M;
  parallel_for(panels * ((p.M + chunk - 1) / chunk), [&](int64_t item) {
    const int64_t first = item % panels * kTileBlocks, m = item / panels * chunk;
    const int64_t count = std::min<int64_t>(kTileBlocks, blocks - first), n = first * 16;
    const auto* weight = static_cast<const uint8_t*>(p.weight) + first * block_bytes;
    if (!p.packed) {
      auto* scratch = static_cast<uint8_t*>(thread_scratch(size_t(kTileBlocks * block_bytes)));
      for (int64_t b = 0; b < count; ++b)
        pack_rows(p.weight, p.weight_stride_n, p.dtype, p.N, p.K, n + b * 16, scratch + b * block_bytes);
      weight = scratch;
    }
    const auto product =
        count == 1 ? panel_product<kBF16, kTileRows, 1> : panel_product<kBF16, kTileRows, kTileBlocks>;
    product(static_cast<const float*>(p.x) + m * p.x_stride_m, p.x_stride_m, weight, p.K,
            p.bias ? p.bias + n : nullptr, p.out + m * p.out_stride_m + n, p.out_stride_m,
            std::min(chunk, p.M - m), int(std::min(p.N - n, count * 16)));
  });
}

}  // namespace

void linear(const LinearParams& p) {
  if (p.M == 0) return;
  p.dtype == DType::kBF16 ? run<true>(p) : run<false>(p);
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(linear, LinearParams)
