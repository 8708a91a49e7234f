// SPDX-License-Identifier: Apache-2.0
// CPU append_kv. One item is one KV head of a few neighbouring tokens: tokens of one text share the cache
// lines of tiled pages, and so do items of one text, but only at their ends.
#include "pyspec/append_kv.h"

#include "cpu/kernel.h"
#include "cpu/rows.h"

namespace pyspec::PYSPEC_ISA {
namespace {

constexpr int64_t kItemTokens = 16;
constexpr int64_t kSerialElements = 1024;  // 3 us of work, mostly misses: fewer are not worth waking a thread

Slot slot_for(const AppendKvParams& p, Kv kv, int64_t t, int64_t g) {
  const KvPages& pages = kv == Kv::kKey ? p.k_pages : p.v_pages;
  return slot_of(pages, kv, p.kv_layout, p.kv_dtype, p.slots[t] / p.S, p.slots[t] % p.S, g, p.S, p.D);
}

void append_row(const AppendKvParams& p, Kv kv, int64_t t, int64_t g, float* wide, void* row) {
  const bool key = kv == Kv::kKey;
  float* scale = key ? p.k_scale : p.v_scale;
  widen_row(key ? p.k : p.v, t * (key ? p.k_stride_t : p.v_stride_t) + g * p.D, p.D, p.dtype, wide);
  if (key && p.rope_table) rotate_row(wide, p.rope_table + p.positions[t] * p.Y, p.Y, p.interleaved);
  if (scale) {
    scale[p.slots[t] * p.G + g] = quantize_row(wide, p.D, static_cast<int8_t*>(row));
  } else {
    narrow_row(wide, p.D, p.kv_dtype, row, 0);
  }
  const Slot slot = slot_for(p, kv, t, g);
  copy_slot(contiguous_like(slot, row), slot);
}

}  // namespace

void append_kv(const AppendKvParams& p) {
  const auto item = [&](int64_t i) {
    float* wide = static_cast<float*>(thread_scratch(2 * size_t(p.D) * sizeof(float)));
    const int64_t g = i % p.G, begin = i / p.G * kItemTokens, end = std::min(p.T, begin + kItemTokens);
    for (const Kv kv : {Kv::kKey, Kv::kValue})
      for (int64_t t = begin; t < end; ++t) prefetch_slot(slot_for(p, kv, t, g));
    for (const Kv kv : {Kv::kKey, Kv::kValue})
      for (int64_t t = begin; t < end; ++t) append_row(p, kv, t, g, wide, wide + p.D);
  };
  const int64_t items = (p.T + kItemTokens - 1) / kItemTokens * p.G;
  if (p.T * p.G * p.D < kSerialElements) {
    for (int64_t i = 0; i < items; ++i) item(i);
  } else {
    parallel_for(items, item);
  }
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(append_kv, AppendKvParams)
