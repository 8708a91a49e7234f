// SPDX-License-Identifier: Apache-2.0
// tree_attention on torch tensors of a GPU: checks, workspace, plan and run. Device tensors are not read
// here.
#pragma once

#include <ATen/ops/empty.h>

#include <tuple>

#include "bind/launch.h"
#include "bind/tree_attention.h"
#include "cuda/tree_attention_config.h"

namespace pyspec {

// Whether rows (the last dimension) are contiguous and begin at multiples of 16 bytes, as cp.async takes
// them.
inline bool has_aligned_rows(const at::Tensor& x) {
  if (x.numel() == 0) return true;
  bool aligned = x.stride(-1) == 1 && reinterpret_cast<uintptr_t>(x.const_data_ptr()) % 16 == 0;
  for (int64_t i = 0; i + 1 < x.dim(); ++i)
    aligned = aligned && (x.size(i) == 1 || x.stride(i) * x.element_size() % 16 == 0);
  return aligned;
}
inline at::Tensor with_aligned_rows(const at::Tensor& x) {
  return has_aligned_rows(x) ? x : x.clone(at::MemoryFormat::Contiguous);
}

// What the kernel cannot do, after the contract: the rules of cuda_limit in pyspec/spec/tree_attention.py.
inline void check_cuda_limits(const Checker& check, const TreeAttentionArgs& args) {
  const int64_t D = args.D.size;
  check.value(D == 64 || D == 96 || D == 128 || D == 256, "q",
              "[T, H, D] with D one of 64|96|128|256 on GPUs", list_text(args.q.sizes()));
  TORCH_CHECK_TYPE(args.k_pages.scalar_type() != at::kFloat,
                   "tree_attention: k_pages must be bf16|f16|f8|i8 on GPUs, got f32");
  check.value(args.layout == KvLayout::kPaged, "kv_layout", "paged on GPUs", args.kv_layout);
  check.value(args.S.size <= attention::kMaxPageSlots && args.P.size <= attention::kMaxPages, "k_pages",
              "[P, S, G, D] with S <= 256 and P <= 2^23 on GPUs", list_text(args.k_pages.sizes()));
}

// A call after its checks: what the launch takes, and the tensors that it points to.
struct TreeAttentionCall {
  TreeAttentionCudaParams p{};
  at::Tensor q, k, v, page_table, kv_len, cu_t, parents, k_scale, v_scale, sinks, out, lse;

  TreeAttentionCall(const Checker& check, const TreeAttentionArgs& args, const DeviceLimits& limits) {
    check_cuda_limits(check, args);
    const int64_t T = args.T.size, H = args.H.size, D = args.D.size;
    const bool whole_rows = args.q.stride(2) == 1 && args.q.stride(1) == D;
    q = with_aligned_rows(whole_rows ? args.q : args.q.contiguous());
    k = with_aligned_rows(args.k_pages), v = with_aligned_rows(args.v_pages);
    page_table = args.page_table.contiguous(), kv_len = args.kv_len.contiguous();
    cu_t = args.cu_t.contiguous(), parents = args.parents.contiguous();
    const auto dense = [](const OptionalTensor& x) { return x ? x->contiguous() : at::Tensor(); };
    const auto floats = [](const at::Tensor& x) { return x.defined() ? x.const_data_ptr<float>() : nullptr; };
    k_scale = dense(args.k_scale), v_scale = dense(args.v_scale), sinks = dense(args.sinks);
    p.q = q.const_data_ptr();
    p.k = view_pages(k);
    p.v = view_pages(v);
    p.k_scale = floats(k_scale);
    p.v_scale = floats(v_scale);
    p.sinks = floats(sinks);
    p.page_table = page_table.const_data_ptr<int32_t>();
    p.kv_len = kv_len.const_data_ptr<int32_t>();
    p.cu_t = cu_t.const_data_ptr<int32_t>();
    p.parents = parents.const_data_ptr<int32_t>();
    p.T = T, p.B = args.B.size, p.H = H, p.G = args.G.size, p.D = D, p.S = args.S.size, p.W = args.W.size;
    p.q_stride_t = q.stride(0);
    p.window = args.window;
    p.q_dtype = to_dtype(q.scalar_type());
    p.kv_dtype = to_dtype(k.scalar_type());
    p.scale = float(args.scale);
    p.softcap = float(args.softcap);
    p.num_sms = limits.num_sms;
    p.block_shared_bytes = limits.block_shared_bytes;
    p.sm_shared_bytes = limits.sm_shared_bytes;
  }

  void allocate_results() {
    out = at::empty(q.sizes(), q.options());
    lse = at::empty({p.T, p.H}, q.options().dtype(at::kFloat));
    p.out = out.mutable_data_ptr();
    p.lse = lse.mutable_data_ptr<float>();
  }

  at::Tensor make_workspace() {
    const at::Tensor workspace = at::empty({attention::workspace_bytes(p)}, q.options().dtype(at::kByte));
    p.workspace = workspace.mutable_data_ptr();
    return workspace;
  }
};

// The op, and its two halves: the plan, made once a step, and the run of each layer in the plan's workspace.
template <Launch<TreeAttentionCudaParams> kBoth, Launch<TreeAttentionCudaParams> kPlan,
          Launch<TreeAttentionCudaParams> kRun, DeviceLimits (*kLimits)(at::Device)>
struct TreeAttention {
  using Results = std::tuple<at::Tensor, at::Tensor>;

  static TreeAttentionCall checked(TreeAttentionArgs args) {
    Checker check("tree_attention");
    args.check(check);
    return TreeAttentionCall(check, args, kLimits(args.q.device()));
  }

  static Results op(const at::Tensor& q, const at::Tensor& k_pages, const at::Tensor& v_pages,
                    const at::Tensor& page_table, const at::Tensor& kv_len, const at::Tensor& cu_t,
                    const at::Tensor& parents, const OptionalTensor& k_scale, const OptionalTensor& v_scale,
                    const OptionalTensor& sinks, double scale, int64_t window, double softcap,
                    c10::string_view kv_layout) {
    TreeAttentionCall call = checked({q, k_pages, v_pages, page_table, kv_len, cu_t, parents, k_scale,
                                      v_scale, sinks, scale, window, softcap, kv_layout});
    call.allocate_results();
    const at::Tensor workspace = call.make_workspace();
    kBoth(q.device(), call.p);
    return {call.out, call.lse};
  }

  // Of sizes and indices alone: q_shape [T, H, D], pages_shape [P, S, G, D]; node_count as in the struct.
  static at::Tensor plan(const at::Tensor& page_table, const at::Tensor& kv_len, const at::Tensor& cu_t,
                         const at::Tensor& parents, at::IntArrayRef q_shape, at::IntArrayRef pages_shape,
                         at::ScalarType q_dtype, at::ScalarType kv_dtype, int64_t window,
                         int64_t node_count) {
    Checker check("tree_attention_plan");
    check.value(q_shape.size() == 3, "q_shape", "[T, H, D]", list_text(q_shape));
    check.value(pages_shape.size() == 4, "pages_shape", "[P, S, G, D]", list_text(pages_shape));
    Dim B{"B"}, W{"W"};
    check.tensor("page_table", page_table, {B, W}, {at::kInt});
    check.tensor("kv_len", kv_len, {B}, {at::kInt});
    check.tensor("cu_t", cu_t, {{"B+1", B.size + 1}}, {at::kInt});
    check.tensor("parents", parents, {{"T", q_shape[0]}}, {at::kInt});
    const at::Tensor table = page_table.contiguous();
    const at::Tensor lengths = kv_len.contiguous(), offsets = cu_t.contiguous(), tree = parents.contiguous();
    const DeviceLimits limits = kLimits(parents.device());
    TreeAttentionCudaParams p{};
    p.kv_len = lengths.const_data_ptr<int32_t>();
    p.cu_t = offsets.const_data_ptr<int32_t>();
    p.page_table = table.const_data_ptr<int32_t>();
    p.parents = tree.const_data_ptr<int32_t>();
    p.T = q_shape[0], p.H = q_shape[1], p.D = q_shape[2];
    p.S = pages_shape[1], p.G = pages_shape[2], p.B = B.size, p.W = W.size;
    p.window = window;
    p.node_count = node_count;
    p.q_dtype = to_dtype(q_dtype);
    p.kv_dtype = to_dtype(kv_dtype);
    p.num_sms = limits.num_sms;
    p.block_shared_bytes = limits.block_shared_bytes;
    p.sm_shared_bytes = limits.sm_shared_bytes;
    const at::Tensor workspace =
        at::empty({attention::workspace_bytes(p)}, parents.options().dtype(at::kByte));
    p.workspace = workspace.mutable_data_ptr();
    kPlan(parents.device(), p);
    return workspace;
  }

  static Results run(const at::Tensor& q, const at::Tensor& k_pages, const at::Tensor& v_pages,
                     const at::Tensor& page_table, const at::Tensor& kv_len, const at::Tensor& cu_t,
                     const at::Tensor& parents, const OptionalTensor& k_scale, const OptionalTensor& v_scale,
                     const OptionalTensor& sinks, const at::Tensor& workspace, double scale, int64_t window,
                     double softcap, c10::string_view kv_layout, int64_t node_count) {
    TreeAttentionCall call = checked({q, k_pages, v_pages, page_table, kv_len, cu_t, parents, k_scale,
                                      v_scale, sinks, scale, window, softcap, kv_layout});
    Checker check("tree_attention");
    call.p.node_count = node_count;
    const int64_t bytes = attention::workspace_bytes(call.p);
    check.tensor("workspace", workspace, {{"Z", bytes}}, {at::kByte});
    check.value(workspace.is_contiguous(), "workspace", "contiguous", list_text(workspace.strides()));
    call.allocate_results();
    call.p.workspace = workspace.mutable_data_ptr();
    kRun(q.device(), call.p);
    return {call.out, call.lse};
  }
};

}  // namespace pyspec
