// SPDX-License-Identifier: Apache-2.0
// CUDA tree_attention, sm_80 and newer: choice of launch (tree_attention_config.h), plan
// (tree_attention_plan.cuh) and kernels (tree_attention_kernel.cuh). Run on an emulator only: neither checked
// nor timed on a GPU yet.
//
// Planted bugs:
//   1  a stage is used one cp.async group too early
//   2  a stage is overwritten while other warps still read it: no barrier
//   3  a node of a chain sees the next one
//   4  what a row does not see is multiplied by 0, even NaN
//   5  parts of a row tile say that they are done before all their threads have stored
//   6  accumulators are not scaled when the maximum grows
//   7  the scale of V is dropped
//   8  a slot is looked for in the page of the next one
//   9  a window is one position too wide for ancestors
//  10  the folded parts begin with the second one
//  11  the rest of a request does not wait for the spans that its group shares
//  12  requests share one span more than their page tables do
#include "cuda/tree_attention_kernel.cuh"
#include "cuda/tree_attention_plan.cuh"

namespace pyspec {

using namespace attention;

namespace {

Call place_call(const TreeAttentionCudaParams& p, const TreeAttentionConfig& config) {
  Call call = make_call(p);
  call.w = place_workspace(p, config);
  call.shared = place_shared(call, config.tile_rows);
  call.tile_rows = config.tile_rows;
  return call;
}

template <int kD, bool kF16, int kFrags>
void launch(const Call& call, const TreeAttentionConfig& config, void* stream) {
  PYSPEC_LAUNCH((attend<kD, kF16, kFrags>), config.grid, config.warps * kWarp, config.shared_bytes, stream,
                call);
}

template <bool kF16>
void launch_head_dim(const Call& call, const TreeAttentionConfig& config, void* stream) {
  if (call.p.D == 64 && config.frags == 1)
    launch<64, kF16, 1>(call, config, stream);
  else if (call.p.D == 64)
    launch<64, kF16, 2>(call, config, stream);
  else if (call.p.D == 96)
    launch<96, kF16, 1>(call, config, stream);
  else if (call.p.D == 128)
    launch<128, kF16, 1>(call, config, stream);
  else
    launch<256, kF16, 1>(call, config, stream);
}

}  // namespace

TreeAttentionConfig pick_tree_attention_config(const TreeAttentionCudaParams& p) { return pick_config(p); }

int64_t tree_attention_cuda_workspace_bytes(const TreeAttentionCudaParams& p) { return workspace_bytes(p); }

void tree_attention_plan_cuda(const TreeAttentionCudaParams& p, void* stream) {
  if (p.T == 0) return;
  const TreeAttentionConfig config = pick_config(p);
  PYSPEC_LAUNCH(plan_step, 1, kPlanThreads, sizeof(PlanShared), stream, place_call(p, config),
                config.blocks_at_once, config.grid);
}

void tree_attention_run_cuda(const TreeAttentionCudaParams& p, void* stream) {
  if (p.T == 0) return;
  const TreeAttentionConfig config = pick_config(p);
  const Call call = place_call(p, config);
  (call.f16 ? launch_head_dim<true> : launch_head_dim<false>)(call, config, stream);
}

void tree_attention_cuda(const TreeAttentionCudaParams& p, void* stream) {
  tree_attention_plan_cuda(p, stream);
  tree_attention_run_cuda(p, stream);
}

}  // namespace pyspec
