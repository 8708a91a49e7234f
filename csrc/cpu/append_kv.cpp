// SPDX-License-Identifier: Apache-2.0
// CPU append_kv. One item is a few neighbouring tokens with all their heads: tokens of one text share the
// cache lines of tiled pages, and so do items of one text, but only at their ends.
#include "pyspec/append_kv.h"

#include "cpu/kernel.h"
#include "cpu/rows.h"

namespace pyspec::PYSPEC_ISA {
namespace {

constexpr int64_t kItemTokens = 16;
constexpr int64_t kSerialElements = 4096;  // 2 us of work: fewer are not worth waking a thread for

void append_row(const AppendKvParams& p, Kv kv, int64_t t, int64_t g, float* wide, void* row) {
  const bool key = kv == Kv::kKey;
  const KvPages& pages = key ? p.k_pages : p.v_pages;
  float* scale = key ? p.k_scale : p.v_scale;
  widen_row(key ? p.k : p.v, t * (key ? p.k_stride_t : p.v_stride_t) + g * p.D, p.D, p.dtype, wide);
  if (key && p.rope_table) rotate_row(wide, p.rope_table + p.positions[t] * p.Y, p.Y, p.interleaved);
  if (scale) {
    scale[p.slots[t] * p.G + g] = quantize_row(wide, p.D, static_cast<int8_t*>(row));
  } else {
    narrow_row(wide, p.D, p.kv_dtype, row, 0);
  }
  const Slot slot =
      slot_of(pages, kv, p.kv_layout, p.kv_dtype, p.slots[t] / p.S, p.slots[t] % p.S, g, p.S, p.D);
  copy_slot(contiguous_like(slot, row), slot);
}

}  // namespace

void append_kv(const AppendKvParams& p) {
  const auto item = [&](int64_t i) {
    float* wide = static_cast<float*>(thread_scratch(2 * size_t(p.D) * sizeof(float)));
    const int64_t end = std::min(p.T, (i + 1) * kItemTokens);
    for (const Kv kv : {Kv::kKey, Kv::kValue})
      for (int64_t g = 0; g < p.G; ++g)
        for (int64_t t = i * kItemTokens; t < end; ++t) append_row(p, kv, t, g, wide, wide + p.D);
  };
  const int64_t items = (p.T + kItemTokens - 1) / kItemTokens;
  if (p.T * p.G * p.D < kSerialElements) {
    for (int64_t i = 0; i < items; ++i) item(i);
  } else {
    parallel_for(items, item);
  }
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(append_kv, AppendKvParams)
