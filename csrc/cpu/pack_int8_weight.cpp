// SPDX-License-Identifier: Apache-2.0
// CPU packing of int8 weights. One item is one block of 16 channels.
#include "pyspec/pack_int8_weight.h"

#include "cpu/kernel.h"

namespace pyspec::PYSPEC_ISA {

void pack_int8_weight(const PackInt8WeightParams& p) {
  const int64_t block_bytes = packed_int8_block_bytes(p.K);
  parallel_for((p.N + 15) / 16, [&](int64_t i) {
    uint8_t* block = p.packed + i * block_bytes;
    std::memset(block, 0, size_t(block_bytes));
    for (int64_t c = 0; c < std::min<int64_t>(16, p.N - i * 16); ++c) {
      const int8_t* row = p.weight + (i * 16 + c) * p.weight_stride_n;
      for (int64_t k = 0; k < p.K; ++k) block[k / 4 * 64 + c * 4 + k % 4] = uint8_t(row[k] ^ 0x80);
    }
  });
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(pack_int8_weight, PackInt8WeightParams)
