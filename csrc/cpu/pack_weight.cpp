// SPDX-License-Identifier: Apache-2.0
// CPU packing of f32 and bf16 weights. One item is one block of 16 channels.
#include "pyspec/pack_weight.h"

#include "cpu/kernel.h"
#include "cpu/weight_pack.h"

namespace pyspec::PYSPEC_ISA {

void pack_weight(const PackWeightParams& p) {
  const int64_t block_bytes = packed_block_elements(p.K) * size_of(p.dtype);
  parallel_for((p.N + 15) / 16, [&](int64_t i) {
    pack_rows(p.weight, p.weight_stride_n, p.dtype, p.N, p.K, i * 16,
              static_cast<uint8_t*>(p.packed) + i * block_bytes);
  });
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(pack_weight, PackWeightParams)
