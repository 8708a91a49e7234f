// SPDX-License-Identifier: Apache-2.0
// tree_attention: plan and launch interface. Spec: pyspec/spec/tree_attention.py; rules:
// docs/ops/tree_attention.md.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "pyspec/dtype.h"
#include "pyspec/kv_pages.h"

namespace pyspec {

// A ragged batch: request b has nodes cu_t[b] .. cu_t[b + 1] - 1 after kv_len[b] committed tokens. Valid as
// the spec's `check` says.
struct TreeBatch {
  const int32_t* kv_len;   // [B]
  const int32_t* cu_t;     // [B + 1]
  const int32_t* parents;  // [T], local to the request: -1, then parents[i] < i
  int64_t B;
};

// Which rows are computed by whom, for one step: built once, shared by every layer with the same window, and
// reused from step to step (memory only ever grows). It serves one launch at a time. Splits change no bit of
// any result.
class TreeAttentionPlan {
 public:
  struct Request {
    int32_t t0, nodes, kv_len;
    bool chain;  // parents[i] == i - 1: slot and position are the same
  };
  // Nodes [node0, node0 + nodes) of one request with all query heads of KV heads [g, g + heads), over chunks
  // of 256 positions.
  struct Unit {
    int32_t request, g, heads, node0, nodes;
    int32_t chunk0, chunks;
    int32_t parts;     // items that share this unit; 1: merged in line, nothing stored
    int64_t partials;  // offset in floats of this unit's stored chunks in the workspace (parts > 1)
  };
  struct Item {
    int32_t unit, chunk0, chunk1;
  };

  // `threads`: how many to spread the work over. `workspace_bytes`: what launches will get; units whose
  // chunks do not fit there are not split.
  void build(const TreeBatch& batch, int64_t H, int64_t G, int64_t D, int64_t window, size_t workspace_bytes,
             int threads);

  int64_t window = 0;
  std::vector<Request> requests;
  std::vector<int32_t> parents, depth;  // [T]
  std::vector<Unit> units;
  std::vector<Item> items;
  bool serial = false;  // too little work to wake a thread
  // What this step's split units store: at most workspace_bytes.
  int64_t workspace_floats() const { return workspace_floats_; }
  // [units] finished items of split units: the last one merges and sets it back to 0.
  std::atomic<int32_t>* finished() const { return finished_.get(); }

 private:
  std::unique_ptr<std::atomic<int32_t>[]> finished_;
  size_t finished_size_ = 0;
  int64_t workspace_floats_ = 0;
};

// Bytes that let every step of up to T nodes and `slots` slots per request be split well (at most 64 MiB).
size_t tree_attention_workspace_bytes(int64_t T, int64_t H, int64_t D, int64_t slots, int threads);

struct TreeAttentionParams {
  const TreeAttentionPlan* plan;
  const void* q;              // [T, H, D], row stride q_stride_t, the rest contiguous
  KvPages k, v;               // [P, S, G, D] of kv_dtype
  const int32_t* page_table;  // [B, W] contiguous
  void* out;                  // [T, H, D] contiguous, of q_dtype
  float* lse;                 // [T, H] contiguous, or null
  float* workspace;           // the workspace_bytes that the plan was built with, aligned to 64 bytes
  int64_t H, G, D, S, W;
  int64_t q_stride_t;
  DType q_dtype, kv_dtype;
  KvLayout kv_layout;
  float scale, softcap;            // softcap 0: none
  const float* k_scale = nullptr;  // [P, S, G] contiguous: given exactly when kv_dtype is of 8 bits
  const float* v_scale = nullptr;
};

// D must be a multiple of 16 up to 256, kv_dtype not kF8.
void tree_attention_cpu(const TreeAttentionParams& p);

}  // namespace pyspec
