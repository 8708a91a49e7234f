// SPDX-License-Identifier: Apache-2.0
// tree_attention on GPUs: launch interface. Spec: pyspec/spec/tree_attention.py; rules:
// docs/ops/tree_attention.md.
#pragma once

#include <cstdint>

#include "pyspec/dtype.h"
#include "pyspec/kv_pages.h"

namespace pyspec {

// One call. Plan and run take the same struct: the plan reads page_table, kv_len, cu_t and parents.
struct TreeAttentionCudaParams {
  const void* q;  // [T, H, D], row stride q_stride_t, the rest contiguous; rows aligned to 16 bytes
  KvPages k, v;   // [P, S, G, D] of kv_dtype, rows aligned to 16 bytes
  const float *k_scale, *v_scale;  // [P, S, G] contiguous; null unless kv_dtype is f8 or i8
  const float* sinks;              // [H], or null
  const int32_t* page_table;       // [B, W] contiguous
  const int32_t* kv_len;           // [B]
  const int32_t* cu_t;             // [B + 1]
  const int32_t* parents;          // [T], local to the request
  void* out;                       // [T, H, D] contiguous, of q_dtype
  float* lse;                      // [T, H] contiguous
  void* workspace;                 // tree_attention_cuda_workspace_bytes, aligned to 16 bytes
  int64_t T, B, H, G, D, S, W;
  int64_t q_stride_t;
  int64_t window;      // 0: none
  int64_t node_count;  // nodes of a typical request, by which rows are tiled; 0: T / B. Changes no bit
  DType q_dtype, kv_dtype;
  float scale, softcap;  // softcap 0: none
  int num_sms;           // of the device, and the shared memory in bytes that a block and an SM may have
  int block_shared_bytes, sm_shared_bytes;
};

// How a call is cut into blocks: a function of sizes, dtypes and the device alone.
struct TreeAttentionConfig {
  int tile_rows;       // (node, query head) rows of one KV head that a block holds
  int warps;           // of a block
  int frags;           // 16-row fragments a warp computes
  int shared_bytes;    // of a block
  int blocks_at_once;  // that the machine holds: row tiles are split by spans to fill it, not further
  int max_tiles;       // row tiles of a KV head in any batch of T nodes in B requests
  int grid;            // blocks launched: row tiles, or parts of them; those without work exit
};
TreeAttentionConfig pick_tree_attention_config(const TreeAttentionCudaParams& p);

int64_t tree_attention_cuda_workspace_bytes(const TreeAttentionCudaParams& p);

// Once a step: who computes what, ancestor masks. Reads nothing on the host: safe in CUDA graphs.
void tree_attention_plan_cuda(const TreeAttentionCudaParams& p, void* stream);

// Once a layer, after the plan of the same sizes, window and workspace. Leaves the workspace ready for the
// next.
void tree_attention_run_cuda(const TreeAttentionCudaParams& p, void* stream);

// Both.
void tree_attention_cuda(const TreeAttentionCudaParams& p, void* stream);

}  // namespace pyspec
