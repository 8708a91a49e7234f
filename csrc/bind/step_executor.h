// SPDX-License-Identifier: Apache-2.0
// The compiled executor: a step program as a list of launches over fixed pointers, run by one call per step.
// No math here.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "pyspec/kv_pages.h"
#include "pyspec/quant_format.h"
#include "pyspec/tree_attention.h"

namespace pyspec {

// Sizes of one step: T nodes of B requests, R rows of logits.
struct StepSizes {
  int64_t T = 0, R = 0, B = 0;
};

// f32 rows in memory that outlives the executor (the Python side holds it): `columns` of every `stride`
// floats. A step has T of them, or R where the buffer holds rows of logits.
struct Rows {
  float* data;
  int64_t columns, stride;
  bool of_logits;
  int64_t count(const StepSizes& s) const { return of_logits ? s.R : s.T; }
};

// The arrays of a step, filled by the caller before run().
struct StepArrays {
  const int32_t *tokens, *positions, *parents, *cu_t, *kv_len, *page_table, *logit_rows;
  const int64_t* slots;
  int64_t table_width;
};

// The trees of a step, filled by the caller before walk(), and where it writes: see pyspec/verify_tree.h.
struct WalkArrays {
  const int32_t *tokens, *parents, *cu_t, *position;
  const float* temperature;
  const int32_t* top_k;
  const float *top_p, *min_p, *typical_p;
  const int64_t* seed;
  const int32_t* stream;
  int32_t *path, *path_len, *emitted;
  float* logprobs;
};

// What is wanted of a walk beside its tokens; arrays of num_logprobs for every node of every path.
struct WalkLogprobs {
  bool wanted;
  int64_t num_logprobs;
  int32_t* top_tokens;
  float* top_logprobs;
};

// The KV cache: pages [P, S, G, D] of every layer, one after another; with int8 pages scales [P, S, G], else
// null.
struct CacheShape {
  uintptr_t k, v;
  float *k_scale, *v_scale;
  int64_t layers, pages, page_size, kv_heads, head_dim;
  DType dtype;
  KvLayout layout;
};

class StepExecutor {
 public:
  StepExecutor(const StepArrays& arrays, const CacheShape& cache, int64_t max_tokens, int64_t heads);

  // quantized: the result is quantised for the quant_linear launches that follow, as quantize() does, and not
  // written. Not for heads > 1.
  void rms_norm(Rows x, const float* weight, Rows out, int64_t heads, float eps, bool quantized);
  void add_rms_norm(Rows residual, Rows delta, const float* weight, Rows out, float eps, bool quantized);
  void rope(Rows x, const float* table, int64_t heads, int64_t rotary);
  void append_kv(Rows k, Rows v, const float* table, int64_t layer, int64_t rotary);
  void tree_attention(Rows q, Rows out, int64_t layer, float scale, float softcap, int64_t window);
  void embedding(const void* weight, DType dtype, Rows out, float scale);
  void quant_embedding(const uint8_t* packed, QuantFormat format, Rows out, float scale);
  void linear(Rows x, const void* packed, DType dtype, const float* bias, Rows out);
  void quantize(Rows x);  // for the quant_linear launches that follow, until the next quantize
  void quant_linear(const uint8_t* packed, QuantFormat format, const float* bias, Rows x, Rows out);
  void gated(Rows gate_up, Rows out, bool gelu, bool quantized);  // quantized: as in rms_norm
  void softcap(Rows x, float cap);
  void gather_rows(Rows x, Rows out);
  void copy(Rows x, Rows out);

  void run(const StepSizes& sizes);
  // Walks the trees by the step's rows of logits, or by `edited` [R, V] where that is not null, and commits
  // the paths that do not lie where they belong already.
  void walk(const WalkArrays& arrays, Rows logits, const float* edited, const StepSizes& sizes,
            int64_t max_path, const WalkLogprobs& logprobs);
  void commit(const int32_t* path, const int32_t* path_len, int64_t B, int64_t E) const;
  size_t workspace_bytes() const { return workspace_.size() + activations_.size(); }

 private:
  void norm_quantized(Rows x, float* residual, const float* weight, float eps);
  void reserve_activations(int64_t columns);
  void* activations() const;
  KvPages pages(uintptr_t base, int64_t layer) const;
  float* scales(float* base, int64_t layer) const;
  void add(std::function<void(const StepSizes&)> launch) { launches_.push_back(std::move(launch)); }

  StepArrays arrays_;
  CacheShape cache_;
  int64_t max_tokens_, heads_;
  std::vector<std::function<void(const StepSizes&)>> launches_;
  std::vector<std::unique_ptr<TreeAttentionPlan>> plans_;  // one per sliding window
  std::vector<char> workspace_, activations_;              // of attention, and of quantised rows
  std::vector<int32_t> moved_;                             // lengths of the paths that are to be moved
};

}  // namespace pyspec
