// SPDX-License-Identifier: Apache-2.0
// CPU tile_kv. One item is one page of K and V.
#include "pyspec/tile_kv.h"

#include "cpu/kernel.h"
#include "cpu/rows.h"

namespace pyspec::PYSPEC_ISA {
namespace {

void convert_page(const TileKvParams& p, int64_t page) {
  const KvLayout from = p.inverse ? KvLayout::kTiled : KvLayout::kPaged;
  const KvLayout to = p.inverse ? KvLayout::kPaged : KvLayout::kTiled;
  const int64_t stride_p = p.S * p.G * p.D, stride_s = p.G * p.D, stride_g = p.D;
  const auto convert = [&](const void* source, void* target, Kv kv) {
    for (int64_t s = 0; s < p.S; ++s)
      for (int64_t g = 0; g < p.G; ++g) {
        Slot a = slot_of({const_cast<void*>(source), stride_p, stride_s, stride_g}, kv, from, p.dtype, page,
                         s, g, p.S, p.D);
        Slot b = slot_of({target, stride_p, stride_s, stride_g}, kv, to, p.dtype, page, s, g, p.S, p.D);
        Slot& row = p.inverse ? b : a;  // the contiguous one, in the units of the tiled one
        row = contiguous_like(p.inverse ? a : b, row.data);
        copy_slot(a, b);
      }
  };
  convert(p.k, p.k_out, Kv::kKey);
  convert(p.v, p.v_out, Kv::kValue);
}

}  // namespace

void tile_kv(const TileKvParams& p) {
  parallel_for(p.P, [&](int64_t page) { convert_page(p, page); });
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(tile_kv, TileKvParams)
