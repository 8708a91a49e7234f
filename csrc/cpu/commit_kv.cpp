// SPDX-License-Identifier: Apache-2.0
// CPU commit_kv. One item is one KV head of one request; its moves run in path order, so no source is
// overwritten.
#include "pyspec/commit_kv.h"

#include "cpu/kernel.h"
#include "cpu/rows.h"

namespace pyspec::PYSPEC_ISA {
namespace {

constexpr int64_t kSerialElements = 32768;  // fewer are not worth waking a thread for

void commit_head(const CommitKvParams& p, int64_t b, int64_t g) {
  const int32_t* table = p.page_table + b * p.W;
  for (int64_t j = 0; j < p.path_len[b]; ++j) {
    const int64_t to = p.kv_len[b] + j, from = p.kv_len[b] + p.path[b * p.E + j];
    if (from == to) continue;
    const auto move = [&](const KvPages& pages, float* scale, Kv kv) {
      const auto slot = [&](int64_t logical) {
        return slot_of(pages, kv, p.kv_layout, p.kv_dtype, table[logical / p.S], logical % p.S, g, p.S, p.D);
      };
      const auto scale_of = [&](int64_t logical) -> float& {
        return scale[(table[logical / p.S] * p.S + logical % p.S) * p.G + g];
      };
      copy_slot(slot(from), slot(to));
      if (scale) scale_of(to) = scale_of(from);
    };
    move(p.k_pages, p.k_scale, Kv::kKey);
    move(p.v_pages, p.v_scale, Kv::kValue);
  }
}

}  // namespace

void commit_kv(const CommitKvParams& p) {
  if (p.B * p.E * p.G * p.D < kSerialElements) {
    for (int64_t i = 0; i < p.B * p.G; ++i) commit_head(p, i / p.G, i % p.G);
  } else {
    parallel_for(p.B * p.G, [&](int64_t i) { commit_head(p, i / p.G, i % p.G); });
  }
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(commit_kv, CommitKvParams)
