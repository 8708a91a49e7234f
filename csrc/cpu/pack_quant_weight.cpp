// SPDX-License-Identifier: Apache-2.0
// CPU packing of GGUF rows. One item is one block of 16 channels.
#include "pyspec/pack_quant_weight.h"

#include "cpu/kernel.h"
#include "cpu/quant_pack.h"

namespace pyspec::PYSPEC_ISA {

void pack_quant_weight(const PackQuantWeightParams& p) {
  parallel_for((p.N + kChannels - 1) / kChannels, [&](int64_t i) {
    pack_block(p.format, p.N, p.K, p.weight, i * kChannels, p.packed + i * packed_block_bytes(p.format, p.K));
  });
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(pack_quant_weight, PackQuantWeightParams)
