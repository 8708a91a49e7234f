// SPDX-License-Identifier: Apache-2.0
// CPU append_kv. One item is one KV head: tokens share cache lines of a tiled page, heads do not.
#include "pyspec/append_kv.h"

#include "cpu/kernel.h"
#include "cpu/rows.h"

namespace pyspec::PYSPEC_ISA {
namespace {

constexpr int64_t kSerialElements = 32768;  // fewer are not worth waking a thread for

void append_head(const AppendKvParams& p, int64_t g) {
  float* wide = static_cast<float*>(thread_scratch(2 * size_t(p.D) * sizeof(float)));
  void* row = wide + p.D;
  const auto write = [&](const KvPages& pages, float* scale, Kv kv, int64_t t) {
    const Slot slot =
        slot_of(pages, kv, p.kv_layout, p.kv_dtype, p.slots[t] / p.S, p.slots[t] % p.S, g, p.S, p.D);
    if (scale) {
      scale[p.slots[t] * p.G + g] = quantize_row(wide, p.D, static_cast<int8_t*>(row));
    } else {
      narrow_row(wide, p.D, p.kv_dtype, row, 0);
    }
    copy_slot(contiguous_like(slot, row), slot);
  };
  for (int64_t t = 0; t < p.T; ++t) {
    widen_row(p.k, t * p.k_stride_t + g * p.D, p.D, p.dtype, wide);
    if (p.rope_table) rotate_row(wide, p.rope_table + p.positions[t] * p.Y, p.Y, p.interleaved);
    write(p.k_pages, p.k_scale, Kv::kKey, t);
    widen_row(p.v, t * p.v_stride_t + g * p.D, p.D, p.dtype, wide);
    write(p.v_pages, p.v_scale, Kv::kValue, t);
  }
}

}  // namespace

void append_kv(const AppendKvParams& p) {
  if (p.T * p.G * p.D < kSerialElements) {
    for (int64_t g = 0; g < p.G; ++g) append_head(p, g);
  } else {
    parallel_for(p.G, [&](int64_t g) { append_head(p, g); });
  }
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(append_kv, AppendKvParams)
