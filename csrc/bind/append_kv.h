// SPDX-License-Identifier: Apache-2.0
// append_kv on torch tensors of any device with a kernel: checks, then one launch.
#pragma once

#include "bind/kv_checks.h"
#include "pyspec/append_kv.h"

namespace pyspec {

inline void check_slots(const Checker& check, const at::Tensor& slots, int64_t total) {
  const int64_t* slot = slots.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < slots.size(0); ++t)
    if (slot[t] < 0 || slot[t] >= total)
      check.value(false, "slots", "in [0, P*S=" + std::to_string(total) + ")",
                  indexed(std::to_string(slot[t]), t));
}

template <Launch<AppendKvParams> kLaunch, Place kPlace>
void append_kv(const at::Tensor& k_, const at::Tensor& v_, at::Tensor& k_pages, at::Tensor& v_pages,
               const at::Tensor& slots_, const at::Tensor& positions_,
               const std::optional<at::Tensor>& rope_table, const std::optional<at::Tensor>& k_scale_,
               const std::optional<at::Tensor>& v_scale_, bool interleaved, c10::string_view kv_layout) {
  Dim T{"T"}, G{"G"}, D{"D"}, P{"P"}, S{"S"}, X{"X"}, Y{"Y"};
  Checker check("append_kv");
  check.tensor("k", k_, {T, G, D}, kFloatTypes);
  check.tensor("v", v_, {T, G, D}, {k_.scalar_type()});
  check.tensor("k_pages", k_pages, {P, S, G, D}, kPageTypes);
  check.tensor("v_pages", v_pages, {P, S, G, D}, {k_pages.scalar_type()});
  check.tensor("slots", slots_, {T}, {at::kLong});
  check.tensor("positions", positions_, {T}, {at::kInt});
  if (rope_table) check.tensor("rope_table", *rope_table, {X, Y}, {at::kFloat});
  if (k_scale_) check.tensor("k_scale", *k_scale_, {P, S, G}, {at::kFloat});
  if (v_scale_) check.tensor("v_scale", *v_scale_, {P, S, G}, {at::kFloat});
  const KvLayout layout = check_layout(check, kv_layout, k_pages);
  check_scales(check, k_pages, k_scale_, v_scale_, layout, kPlace);
  const at::Tensor slots = slots_.contiguous(), positions = positions_.contiguous();
  if (kPlace == Place::kCpu) check_slots(check, slots, P.size * S.size);
  const at::Tensor table = rope_table ? rope_table->contiguous() : at::Tensor();
  if (rope_table) check_rope_table(check, positions, table, D.size, kPlace);

  const at::Tensor k = usable_rows(k_), v = usable_rows(v_);
  const at::Tensor k_out = usable_pages(k_pages, layout), v_out = usable_pages(v_pages, layout);
  const at::Tensor k_scale = usable_scales(k_scale_), v_scale = usable_scales(v_scale_);
  kLaunch(k.device(), {k.const_data_ptr(),
                       v.const_data_ptr(),
                       view_pages(k_out),
                       view_pages(v_out),
                       slots.const_data_ptr<int64_t>(),
                       positions.const_data_ptr<int32_t>(),
                       rope_table ? table.const_data_ptr<float>() : nullptr,
                       T.size,
                       G.size,
                       D.size,
                       S.size,
                       rope_table ? Y.size : 0,
                       k.stride(0),
                       v.stride(0),
                       to_dtype(k_pages.scalar_type()),
                       layout,
                       interleaved,
                       to_dtype(k.scalar_type()),
                       data_of(k_scale),
                       data_of(v_scale)});
  write_back(k_out, k_pages);
  write_back(v_out, v_pages);
  if (k_scale_) write_back(k_scale, *k_scale_);
  if (v_scale_) write_back(v_scale, *v_scale_);
}

}  // namespace pyspec
