// SPDX-License-Identifier: Apache-2.0
// The compiled executor: see step_executor.h.
#include "bind/step_executor.h"

#include <algorithm>
#include <cstring>

#include "cpu/thread_pool.h"
#include "pyspec/append_kv.h"
#include "pyspec/commit_kv.h"
#include "pyspec/embedding.h"
#include "pyspec/linear.h"
#include "pyspec/quant_embedding.h"
#include "pyspec/quant_linear.h"
#include "pyspec/quantize_activations.h"
#include "pyspec/rms_norm.h"
#include "pyspec/rope.h"
#include "pyspec/silu_mul.h"
#include "pyspec/softcap.h"
#include "pyspec/verify_tree.h"

namespace pyspec {
namespace {

constexpr size_t kAlign = 64;
constexpr int64_t kSplitRows = 64;

template <typename T>
T* aligned(const std::vector<char>& buffer) {  // its size has kAlign bytes to spare
  return reinterpret_cast<T*>((reinterpret_cast<uintptr_t>(buffer.data()) + kAlign - 1) &
                              ~uintptr_t(kAlign - 1));
}

}  // namespace

StepExecutor::StepExecutor(const StepArrays& arrays, const CacheShape& cache, int64_t max_tokens,
                           int64_t heads)
    : arrays_(arrays), cache_(cache), max_tokens_(max_tokens), heads_(heads) {
  // Long chains are spread over threads by their rows: only steps of few rows need room for split chunks.
  workspace_.resize(tree_attention_workspace_bytes(std::min<int64_t>(max_tokens, kSplitRows), heads,
                                                   cache.head_dim, arrays.table_width * cache.page_size,
                                                   num_threads()) +
                    kAlign);
}

void StepExecutor::rms_norm(Rows x, const float* weight, Rows out, int64_t heads, float eps, bool quantized) {
  const int64_t K = x.columns / heads;
  if (quantized) return norm_quantized(x, nullptr, weight, eps);
  if (heads == 1 && out.columns == out.stride) {
    add([=](const StepSizes& s) {
      rms_norm_cpu({x.data, nullptr, weight, out.data, s.T, K, x.stride, eps});
    });
    return;
  }
  // Norm of each head: the rows of one token are its heads, tokens lie a wider buffer's row apart.
  add([=](const StepSizes& s) {
    for (int64_t t = 0; t < s.T; ++t)
      rms_norm_cpu({x.data + t * x.stride, nullptr, weight, out.data + t * out.stride, heads, K, K, eps});
  });
}

void StepExecutor::add_rms_norm(Rows residual, Rows delta, const float* weight, Rows out, float eps,
                                bool quantized) {
  if (quantized) return norm_quantized(delta, residual.data, weight, eps);
  add([=](const StepSizes& s) {
    rms_norm_cpu({delta.data, residual.data, weight, out.data, s.T, residual.columns, delta.stride, eps});
  });
}

void StepExecutor::norm_quantized(Rows x, float* residual, const float* weight, float eps) {
  reserve_activations(x.columns);
  add([=, this](const StepSizes& s) {
    rms_norm_cpu({x.data, residual, weight, nullptr, s.T, x.columns, x.stride, eps, activations()});
  });
}

void StepExecutor::rope(Rows x, const float* table, int64_t heads, int64_t rotary) {
  add([=, this](const StepSizes& s) {
    rope_cpu({x.data, arrays_.positions, table, x.data, s.T, heads, x.columns / heads, rotary, x.stride,
              x.stride, DType::kF32, false});
  });
}

void StepExecutor::append_kv(Rows k, Rows v, const float* table, int64_t layer, int64_t rotary) {
  add([=, this](const StepSizes& s) {
    append_kv_cpu({k.data,
                   v.data,
                   pages(cache_.k, layer),
                   pages(cache_.v, layer),
                   arrays_.slots,
                   arrays_.positions,
                   table,
                   s.T,
                   cache_.kv_heads,
                   cache_.head_dim,
                   cache_.page_size,
                   rotary,
                   k.stride,
                   v.stride,
                   cache_.dtype,
                   cache_.layout,
                   false,
                   DType::kF32,
                   scales(cache_.k_scale, layer),
                   scales(cache_.v_scale, layer)});
  });
}

void StepExecutor::tree_attention(Rows q, Rows out, int64_t layer, float scale, float softcap,
                                  int64_t window) {
  TreeAttentionPlan* plan = nullptr;
  for (const auto& known : plans_)
    if (known->window == window) plan = known.get();
  float* workspace = aligned<float>(workspace_);
  if (!plan) {  // the first layer with this window builds the plan of the step, the others share it
    plans_.push_back(std::make_unique<TreeAttentionPlan>());
    plan = plans_.back().get();
    plan->window = window;
    add([=, this](const StepSizes& s) {
      plan->build({arrays_.kv_len, arrays_.cu_t, arrays_.parents, s.B}, heads_, cache_.kv_heads,
                  cache_.head_dim, window, workspace_.size() - kAlign, num_threads());
    });
  }
  add([=, this](const StepSizes&) {
    tree_attention_cpu({plan,
                        q.data,
                        pages(cache_.k, layer),
                        pages(cache_.v, layer),
                        arrays_.page_table,
                        out.data,
                        nullptr,
                        workspace,
                        heads_,
                        cache_.kv_heads,
                        cache_.head_dim,
                        cache_.page_size,
                        arrays_.table_width,
                        q.stride,
                        DType::kF32,
                        cache_.dtype,
                        cache_.layout,
                        scale,
                        softcap,
                        scales(cache_.k_scale, layer),
                        scales(cache_.v_scale, layer)});
  });
}

void StepExecutor::embedding(const void* weight, DType dtype, Rows out, float scale) {
  add([=, this](const StepSizes& s) {
    embedding_cpu(
        {arrays_.tokens, weight, out.data, dtype, s.T, out.columns, out.columns, out.stride, scale});
  });
}

void StepExecutor::quant_embedding(const uint8_t* packed, QuantFormat format, Rows out, float scale) {
  add([=, this](const StepSizes& s) {
    quant_embedding_cpu(
        {arrays_.tokens, packed, out.data, format, true, s.T, out.columns, out.stride, scale});
  });
}

void StepExecutor::linear(Rows x, const void* packed, DType dtype, const float* bias, Rows out) {
  add([=](const StepSizes& s) {
    linear_cpu({x.data, packed, bias, out.data, dtype, true, x.count(s), out.columns, x.columns, x.stride, 0,
                out.stride});
  });
}

void StepExecutor::reserve_activations(int64_t columns) {
  const size_t bytes = size_t(activation_bytes(max_tokens_, columns)) + kAlign;
  if (activations_.size() < bytes) activations_.resize(bytes);
}

void* StepExecutor::activations() const { return aligned<void>(activations_); }

void StepExecutor::quantize(Rows x) {
  reserve_activations(x.columns);
  add([=, this](const StepSizes& s) {
    quantize_activations_cpu({x.data, activations(), x.count(s), x.columns, x.stride});
  });
}

void StepExecutor::quant_linear(const uint8_t* packed, QuantFormat format, const float* bias, Rows x,
                                Rows out) {
  add([=, this](const StepSizes& s) {
    quant_linear_cpu({activations(), packed, bias, out.data, format, true, x.count(s), out.columns, x.columns,
                      out.stride});
  });
}

void StepExecutor::gated(Rows gate_up, Rows out, bool gelu, bool quantized) {
  if (quantized) reserve_activations(out.columns);
  add([=, this](const StepSizes& s) {
    silu_mul_cpu({gate_up.data, out.data, gelu, s.T, out.columns, gate_up.stride, out.stride,
                  quantized ? activations() : nullptr});
  });
}

void StepExecutor::softcap(Rows x, float cap) {
  // Of a whole buffer, with what lies between its rows: zeros stay zeros.
  add([=](const StepSizes& s) { softcap_cpu({x.data, x.data, x.count(s), x.stride, cap}); });
}

void StepExecutor::gather_rows(Rows x, Rows out) {
  add([=, this](const StepSizes& s) {
    for (int64_t r = 0; r < s.R; ++r)
      std::memcpy(out.data + r * out.stride, x.data + arrays_.logit_rows[r] * x.stride,
                  size_t(x.columns) * 4);
  });
}

void StepExecutor::copy(Rows x, Rows out) {
  add([=](const StepSizes& s) {
    for (int64_t t = 0; t < x.count(s); ++t)
      std::memcpy(out.data + t * out.stride, x.data + t * x.stride, size_t(x.columns) * 4);
  });
}

void StepExecutor::run(const StepSizes& sizes) {
  for (const auto& launch : launches_) launch(sizes);
}

void StepExecutor::walk(const WalkArrays& a, Rows logits, const float* edited, const StepSizes& sizes,
                        int64_t max_path, const WalkLogprobs& logprobs) {
  verify_tree_cpu({logits.data,
                   a.tokens,
                   a.parents,
                   a.cu_t,
                   a.position,
                   a.temperature,
                   a.top_k,
                   a.top_p,
                   a.min_p,
                   a.typical_p,
                   a.seed,
                   a.stream,
                   edited,
                   a.path,
                   a.path_len,
                   a.emitted,
                   a.logprobs,
                   logprobs.top_tokens,
                   logprobs.top_logprobs,
                   nullptr,
                   nullptr,
                   sizes.R,
                   sizes.B,
                   logits.columns,
                   max_path,
                   logprobs.num_logprobs,
                   logits.stride,
                   logits.columns,
                   logprobs.wanted});
  moved_.assign(size_t(sizes.B), 0);
  bool any = false;
  for (int64_t b = 0; b < sizes.B; ++b) {
    const int32_t* path = a.path + b * max_path;
    int32_t last = a.path_len[b] - 1;  // nodes of a path ascend: it lies in place if its last one does
    if (last < 0 || path[last] == last) continue;
    moved_[size_t(b)] = last + 1;
    any = true;
  }
  if (any) commit(a.path, moved_.data(), sizes.B, max_path);
}

void StepExecutor::commit(const int32_t* path, const int32_t* path_len, int64_t B, int64_t E) const {
  for (int64_t layer = 0; layer < cache_.layers; ++layer)
    commit_kv_cpu({pages(cache_.k, layer), pages(cache_.v, layer), arrays_.page_table, arrays_.kv_len, path,
                   path_len, B, arrays_.table_width, E, cache_.page_size, cache_.kv_heads, cache_.head_dim,
                   cache_.dtype, cache_.layout, scales(cache_.k_scale, layer),
                   scales(cache_.v_scale, layer)});
}

float* StepExecutor::scales(float* base, int64_t layer) const {
  return base ? base + layer * cache_.pages * cache_.page_size * cache_.kv_heads : nullptr;
}

KvPages StepExecutor::pages(uintptr_t base, int64_t layer) const {
  const int64_t row = cache_.kv_heads * cache_.head_dim, page = cache_.page_size * row;
  const int64_t offset = layer * cache_.pages * page * size_of(cache_.dtype);
  return {reinterpret_cast<char*>(base) + offset, page, row, cache_.head_dim};
}

}  // namespace pyspec
