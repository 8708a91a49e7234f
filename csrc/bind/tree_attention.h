// SPDX-License-Identifier: Apache-2.0
// What the CPU and CUDA bindings of tree_attention check alike: shapes, dtypes and scalars, on the host.
#pragma once

#include <cmath>

#include "bind/kv_checks.h"

namespace pyspec {

using OptionalTensor = std::optional<at::Tensor>;

// The arguments of the op in the order of its schema, and the sizes that `check` has bound.
struct TreeAttentionArgs {
  const at::Tensor &q, &k_pages, &v_pages, &page_table, &kv_len, &cu_t, &parents;
  const OptionalTensor &k_scale, &v_scale, &sinks;
  double scale;
  int64_t window;
  double softcap;
  c10::string_view kv_layout;

  Dim T{"T"}, H{"H"}, D{"D"}, P{"P"}, S{"S"}, G{"G"}, B{"B"}, W{"W"};
  KvLayout layout = KvLayout::kPaged;

  bool is_f8() const { return k_pages.scalar_type() == at::kFloat8_e4m3fn; }
  bool quantised() const { return is_f8() || k_pages.scalar_type() == at::kChar; }

  // The rules of pyspec/spec/tree_attention.py that need no data, in its order.
  void check(Checker& check) {
    check.tensor("q", q, {T, H, D}, kFloatTypes);
    check.tensor("k_pages", k_pages, {P, S, G, D},
                 {at::kFloat, at::kBFloat16, at::kHalf, at::kFloat8_e4m3fn, at::kChar});
    check.tensor("v_pages", v_pages, {P, S, G, D}, {k_pages.scalar_type()});
    check.tensor("page_table", page_table, {B, W}, {at::kInt});
    check.tensor("kv_len", kv_len, {B}, {at::kInt});
    check.tensor("cu_t", cu_t, {{"B+1", B.size + 1}}, {at::kInt});
    check.tensor("parents", parents, {T}, {at::kInt});
    if (k_scale) check.tensor("k_scale", *k_scale, {P, S, G}, {at::kFloat});
    if (v_scale) check.tensor("v_scale", *v_scale, {P, S, G}, {at::kFloat});
    if (sinks) check.tensor("sinks", *sinks, {H}, {at::kFloat});
    layout = check_layout(check, kv_layout, k_pages);
    check.value(G.size > 0 && H.size % G.size == 0, "q",
                "[T, H, D] with H a multiple of G=" + std::to_string(G.size), list_text(q.sizes()));
    check.value(scale > 0 && std::isfinite(scale), "scale", "finite and > 0", scale);
    check.value(window >= 0, "window", ">= 0", window);
    check.value(softcap >= 0 && std::isfinite(softcap), "softcap", "finite and >= 0", softcap);
    for (const auto& [name, tensor] : {std::pair("k_scale", &k_scale), std::pair("v_scale", &v_scale)})
      check.value(tensor->has_value() == quantised(), name, "given exactly when pages are f8|i8",
                  tensor->has_value() ? list_text((*tensor)->sizes()) : "None");
    check.value(!is_f8() || layout == KvLayout::kPaged, "kv_layout", "paged when pages are f8", kv_layout);
  }
};

}  // namespace pyspec
