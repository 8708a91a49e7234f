// SPDX-License-Identifier: Apache-2.0
// torch binding of tree_attention.
#include "pyspec/tree_attention.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "bind/tree_attention.h"
#include "cpu/thread_pool.h"

namespace pyspec {
namespace {

constexpr int64_t kMaxTree = 1024;

// The value rules of pyspec/spec/tree_attention.py, in its order.
void check_batch(const Checker& check, const TreeBatch& batch, const int32_t* table, int64_t T, int64_t W,
                 int64_t P, int64_t S, int64_t window) {
  const auto text = [](int64_t x) { return std::to_string(x); };
  check.value(batch.cu_t[0] == 0, "cu_t", "0 at index 0", batch.cu_t[0]);
  for (int64_t b = 0; b < batch.B; ++b)
    if (batch.cu_t[b + 1] < batch.cu_t[b])
      check.value(false, "cu_t",
                  indexed("at least " + text(batch.cu_t[b]) + " (cu_t never decreases)", b + 1),
                  batch.cu_t[b + 1]);
  check.value(batch.cu_t[batch.B] == T, "cu_t", indexed("T=" + text(T), batch.B), batch.cu_t[batch.B]);
  for (int64_t b = 0; b < batch.B; ++b) {
    const int64_t t0 = batch.cu_t[b], nodes = batch.cu_t[b + 1] - t0, L = batch.kv_len[b];
    if (L < 0) check.value(false, "kv_len", indexed(">= 0", b), L);
    bool chain = true;
    for (int64_t i = 0; i < nodes; ++i) {
      const int32_t parent = batch.parents[t0 + i];
      chain = chain && parent == i - 1;
      if (i ? parent >= 0 && parent < i : parent == -1) continue;
      const std::string where =
          " at index " + text(t0 + i) + " (node " + text(i) + " of request " + text(b) + ")";
      check.value(false, "parents", (i ? "in [0, " + text(i) + ")" : "-1") + where, parent);
    }
    if (nodes > kMaxTree && !chain)
      check.value(false, "parents", "at most 1024 nodes a request unless it is a chain",
                  text(nodes) + " in request " + text(b));
    if (nodes == 0) continue;
    const int64_t end = (L + nodes + S - 1) / S;
    if (end > W)
      check.value(
          false, "page_table",
          "[B, W] with W >= " + text(end) + " for " + text(L + nodes) + " slots of request " + text(b),
          "W=" + text(W));
    for (int64_t w = (window ? std::max<int64_t>(0, L - window + 1) : 0) / S; w < end; ++w)
      if (const int32_t page = table[b * W + w]; page < 0 || page >= P)
        check.value(false, "page_table", "in [0, P=" + text(P) + ")" + at_index(b, w), page);
  }
}

std::tuple<at::Tensor, at::Tensor> tree_attention(const at::Tensor& q_, const at::Tensor& k_pages,
                                                  const at::Tensor& v_pages, const at::Tensor& page_table_,
                                                  const at::Tensor& kv_len_, const at::Tensor& cu_t_,
                                                  const at::Tensor& parents_, const OptionalTensor& k_scale,
                                                  const OptionalTensor& v_scale, const OptionalTensor& sinks,
                                                  double scale, int64_t window, double softcap,
                                                  c10::string_view kv_layout) {
  TreeAttentionArgs args{q_,      k_pages, v_pages, page_table_, kv_len_, cu_t_,   parents_,
                         k_scale, v_scale, sinks,   scale,       window,  softcap, kv_layout};
  Checker check("tree_attention");
  args.check(check);
  const auto& [T, H, D, P, S, G, B, W] =
      std::tie(args.T, args.H, args.D, args.P, args.S, args.G, args.B, args.W);
  const KvLayout layout = args.layout;
  const at::Tensor page_table = page_table_.contiguous(), kv_len = kv_len_.contiguous(),
                   cu_t = cu_t_.contiguous(), parents = parents_.contiguous();
  const TreeBatch batch{kv_len.const_data_ptr<int32_t>(), cu_t.const_data_ptr<int32_t>(),
                        parents.const_data_ptr<int32_t>(), B.size};
  const int32_t* table = page_table.const_data_ptr<int32_t>();
  check_batch(check, batch, table, T.size, W.size, P.size, S.size, window);
  TORCH_CHECK_TYPE(!args.is_f8(), "tree_attention: k_pages must be f32|bf16|f16|i8 on the CPU, got ",
                   dtype_name(k_pages.scalar_type()));
  check.value(!sinks, "sinks", "None on the CPU", list_text(sinks ? sinks->sizes() : at::IntArrayRef()));
  check.value(D.size % 16 == 0 && D.size >= 16 && D.size <= 256, "q",
              "[T, H, D] with D a multiple of 16 up to 256 on the CPU", list_text(q_.sizes()));

  const at::Tensor q = usable_rows(q_), k = usable_pages(k_pages, layout), v = usable_pages(v_pages, layout);
  const at::Tensor key_scale = usable_scales(k_scale), value_scale = usable_scales(v_scale);
  at::Tensor out = at::empty(q.sizes(), q.options());
  at::Tensor lse = at::empty({T.size, H.size}, q.options().dtype(at::kFloat));
  const size_t bytes = tree_attention_workspace_bytes(T.size, H.size, D.size, W.size * S.size, num_threads());
  thread_local TreeAttentionPlan plan;
  plan.build(batch, H.size, G.size, D.size, window, bytes, num_threads());
  const at::Tensor workspace = at::empty({plan.workspace_floats()}, lse.options());
  tree_attention_cpu({&plan,
                      q.const_data_ptr(),
                      view_pages(k),
                      view_pages(v),
                      table,
                      out.mutable_data_ptr(),
                      lse.mutable_data_ptr<float>(),
                      workspace.mutable_data_ptr<float>(),
                      H.size,
                      G.size,
                      D.size,
                      S.size,
                      W.size,
                      q.stride(0),
                      to_dtype(q.scalar_type()),
                      to_dtype(k.scalar_type()),
                      layout,
                      float(scale),
                      float(softcap),
                      data_of(key_scale),
                      data_of(value_scale)});
  return {out, lse};
}

}  // namespace

TORCH_LIBRARY_IMPL(pyspec, CPU, m) { m.impl("tree_attention", tree_attention); }

}  // namespace pyspec
