// SPDX-License-Identifier: Apache-2.0
// torch binding of append_kv.
#include "pyspec/append_kv.h"

#include <torch/library.h>

#include "bind/kv_checks.h"

namespace pyspec {
namespace {

void append_kv(const at::Tensor& k_, const at::Tensor& v_, at::Tensor& k_pages, at::Tensor& v_pages,
               const at::Tensor& slots_, const at::Tensor& positions_,
               const std::optional<at::Tensor>& rope_table, bool interleaved, c10::string_view kv_layout) {
  Dim T{"T"}, G{"G"}, D{"D"}, P{"P"}, S{"S"}, X{"X"}, Y{"Y"};
  Checker check("append_kv");
  check.tensor("k", k_, {T, G, D}, {at::kFloat});
  check.tensor("v", v_, {T, G, D}, {at::kFloat});
  check.tensor("k_pages", k_pages, {P, S, G, D}, kFloatTypes);
  check.tensor("v_pages", v_pages, {P, S, G, D}, {k_pages.scalar_type()});
  check.tensor("slots", slots_, {T}, {at::kLong});
  check.tensor("positions", positions_, {T}, {at::kInt});
  if (rope_table) check.tensor("rope_table", *rope_table, {X, Y}, {at::kFloat});
  const KvLayout layout = check_layout(check, kv_layout, k_pages);
  const at::Tensor slots = slots_.contiguous(), positions = positions_.contiguous();
  const int64_t* slot = slots.const_data_ptr<int64_t>();
  const int64_t total = P.size * S.size;
  for (int64_t t = 0; t < T.size; ++t)
    if (slot[t] < 0 || slot[t] >= total)
      check.value(false, "slots", "in [0, P*S=" + std::to_string(total) + ")",
                  indexed(std::to_string(slot[t]), t));
  const at::Tensor table = rope_table ? rope_table->contiguous() : at::Tensor();
  if (rope_table) check_rope_table(check, positions, table, D.size);

  const at::Tensor k = usable_rows(k_), v = usable_rows(v_);
  const at::Tensor k_out = usable_pages(k_pages, layout), v_out = usable_pages(v_pages, layout);
  append_kv_cpu({k.const_data_ptr<float>(), v.const_data_ptr<float>(), view_pages(k_out), view_pages(v_out),
                 slot, positions.const_data_ptr<int32_t>(),
                 rope_table ? table.const_data_ptr<float>() : nullptr, T.size, G.size, D.size, S.size,
                 rope_table ? Y.size : 0, k.stride(0), v.stride(0), to_dtype(k_pages.scalar_type()), layout,
                 interleaved});
  if (!k_out.is_same(k_pages)) k_pages.copy_(k_out);
  if (!v_out.is_same(v_pages)) v_pages.copy_(v_out);
}

}  // namespace

TORCH_LIBRARY_IMPL(pyspec, CPU, m) { m.impl("append_kv", append_kv); }

}  // namespace pyspec
