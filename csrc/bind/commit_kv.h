// SPDX-License-Identifier: Apache-2.0
// commit_kv on torch tensors of any device with a kernel: checks, then one launch.
#pragma once

#include "bind/kv_checks.h"
#include "pyspec/commit_kv.h"

namespace pyspec {

inline void check_moves(const Checker& check, const CommitKvParams& p, int64_t P) {
  for (int64_t b = 0; b < p.B; ++b) {
    const int32_t L = p.kv_len[b], length = p.path_len[b];
    if (L < 0) check.value(false, "kv_len", ">= 0", indexed(std::to_string(L), b));
    if (length < 0 || length > p.E)
      check.value(false, "path_len", "in [0, E=" + std::to_string(p.E) + "]",
                  indexed(std::to_string(length), b));
    for (int64_t j = 0; j < length; ++j) {
      const int32_t* path = p.path + b * p.E;
      const std::string where = at_index(b, j);
      if (path[j] < (j ? path[j - 1] + 1 : 0))
        check.value(false, "path", "strictly increasing and >= 0", std::to_string(path[j]) + where);
      for (const int64_t slot : {L + j, int64_t(L) + path[j]}) {
        if (slot >= p.W * p.S)
          check.value(false, "path", "within the W*S=" + std::to_string(p.W * p.S) + " slots of a request",
                      std::to_string(path[j]) + where);
        const int32_t page = p.page_table[b * p.W + slot / p.S];
        if (page < 0 || page >= P)
          check.value(false, "page_table", "in [0, P=" + std::to_string(P) + ") where used",
                      std::to_string(page) + at_index(b, slot / p.S));
      }
    }
  }
}

template <Launch<CommitKvParams> kLaunch, Place kPlace>
void commit_kv(at::Tensor& k_pages, at::Tensor& v_pages, const at::Tensor& page_table_,
               const at::Tensor& kv_len_, const at::Tensor& path_, const at::Tensor& path_len_,
               const std::optional<at::Tensor>& k_scale_, const std::optional<at::Tensor>& v_scale_,
               c10::string_view kv_layout) {
  Dim P{"P"}, S{"S"}, G{"G"}, D{"D"}, B{"B"}, W{"W"}, E{"E"};
  Checker check("commit_kv");
  check.tensor("k_pages", k_pages, {P, S, G, D}, kPageTypes);
  check.tensor("v_pages", v_pages, {P, S, G, D}, {k_pages.scalar_type()});
  check.tensor("page_table", page_table_, {B, W}, {at::kInt});
  check.tensor("kv_len", kv_len_, {B}, {at::kInt});
  check.tensor("path", path_, {B, E}, {at::kInt});
  check.tensor("path_len", path_len_, {B}, {at::kInt});
  if (k_scale_) check.tensor("k_scale", *k_scale_, {P, S, G}, {at::kFloat});
  if (v_scale_) check.tensor("v_scale", *v_scale_, {P, S, G}, {at::kFloat});
  const KvLayout layout = check_layout(check, kv_layout, k_pages);
  check_scales(check, k_pages, k_scale_, v_scale_, layout, kPlace);
  const at::Tensor table = page_table_.contiguous(), kv_len = kv_len_.contiguous(), path = path_.contiguous(),
                   path_len = path_len_.contiguous();
  const at::Tensor k = usable_pages(k_pages, layout), v = usable_pages(v_pages, layout);
  const at::Tensor k_scale = usable_scales(k_scale_), v_scale = usable_scales(v_scale_);
  const CommitKvParams params{view_pages(k),
                              view_pages(v),
                              table.const_data_ptr<int32_t>(),
                              kv_len.const_data_ptr<int32_t>(),
                              path.const_data_ptr<int32_t>(),
                              path_len.const_data_ptr<int32_t>(),
                              B.size,
                              W.size,
                              E.size,
                              S.size,
                              G.size,
                              D.size,
                              to_dtype(k.scalar_type()),
                              layout,
                              data_of(k_scale),
                              data_of(v_scale)};
  if (kPlace == Place::kCpu) check_moves(check, params, P.size);
  kLaunch(k.device(), params);
  write_back(k, k_pages);
  write_back(v, v_pages);
  if (k_scale_) write_back(k_scale, *k_scale_);
  if (v_scale_) write_back(v_scale, *v_scale_);
}

}  // namespace pyspec
