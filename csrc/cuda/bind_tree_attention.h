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
  check.value(args.S.size <= attention::kMaxPageSlots && args.P.size <= attention::kMaxPages,
              "k_pages", "[P, S, G, D] with S <= 256 and P <= 2^23 on GPUs", list_text(args.k_pages.sizes()));
}

template <Launch<TreeAttentionCudaParams> kLaunch, DeviceLimits (*kLimits)(at::Device)>
std::tuple<at::Tensor, at::Tensor> tree_attention(const at::Tensor& q_, const at::Tensor& k_pages,
                                                  const at::Tensor& v_pages, const at::Tensor& page_table_,
                                                  const at::Tensor& kv_len_, const at::Tensor& cu_t_,
                                                  const at::Tensor& parents_, const OptionalTensor& k_scale_,
                                                  const OptionalTensor& v_scale_,
                                                  const OptionalTensor& sinks_, double scale, int64_t window,
                                                  double softcap, c10::string_view kv_layout) {
  TreeAttentionArgs args{q_,       k_pages,  v_pages, page_table_, kv_len_, cu_t_,   parents_,
                         k_scale_, v_scale_, sinks_,  scale,       window,  softcap, kv_layout};
  Checker check("tree_attention");
  args.check(check);
  check_cuda_limits(check, args);
  const int64_t H = args.H.size, D = args.D.size;
  const bool whole_rows = q_.stride(2) == 1 && q_.stride(1) == D;
  const at::Tensor q = with_aligned_rows(whole_rows ? q_ : q_.contiguous());
  const at::Tensor k = with_aligned_rows(k_pages), v = with_aligned_rows(v_pages);
  const at::Tensor page_table = page_table_.contiguous(), kv_len = kv_len_.contiguous(),
                   cu_t = cu_t_.contiguous(), parents = parents_.contiguous();
  const auto dense = [](const OptionalTensor& x) { return x ? x->contiguous() : at::Tensor(); };
  const auto floats = [](const at::Tensor& x) { return x.defined() ? x.const_data_ptr<float>() : nullptr; };
  const at::Tensor k_scale = dense(k_scale_), v_scale = dense(v_scale_), sinks = dense(sinks_);
  at::Tensor out = at::empty(q.sizes(), q.options());
  at::Tensor lse = at::empty({args.T.size, H}, q.options().dtype(at::kFloat));

  TreeAttentionCudaParams p{};
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
  p.out = out.mutable_data_ptr();
  p.lse = lse.mutable_data_ptr<float>();
  p.T = args.T.size, p.B = args.B.size, p.H = H, p.G = args.G.size, p.D = D, p.S = args.S.size,
  p.W = args.W.size;
  p.q_stride_t = q.stride(0);
  p.window = window;
  p.q_dtype = to_dtype(q.scalar_type());
  p.kv_dtype = to_dtype(k.scalar_type());
  p.scale = float(scale);
  p.softcap = float(softcap);
  const DeviceLimits limits = kLimits(q.device());
  p.num_sms = limits.num_sms;
  p.block_shared_bytes = limits.block_shared_bytes;
  p.sm_shared_bytes = limits.sm_shared_bytes;
  const int64_t bytes = attention::workspace_bytes(p);
  const at::Tensor workspace = at::empty({bytes}, q.options().dtype(at::kByte));
  p.workspace = workspace.mutable_data_ptr();
  kLaunch(q.device(), p);
  return {out, lse};
}

}  // namespace pyspec
