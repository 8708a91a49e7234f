// SPDX-License-Identifier: Apache-2.0
// CUDA draw_children, sm_80 and newer: one block is one row. A draw is a pass of weights and additions over
// the row, and one over the 32nd part of it that the draw falls into; i.i.d. draws share the first.
//
// Planted bugs:
//   31          what was drawn can be drawn again
//   32          a draw does not wait for the weights of its lane
//   33          all children of a row are drawn with one number
//   34          the sums of the lanes before are not taken off
//   35          places that are left keep what was there
#include "cuda/categorical.cuh"
#include "cuda/typical.cuh"
#include "pyspec/draw_children.h"

namespace pyspec {
namespace {

using cuda::kThreads;

__global__ void __launch_bounds__(kThreads, 1) draw_rows(const DrawChildrenParams p) {
  PYSPEC_DYNAMIC_SHARED(smem);
  auto& s = *reinterpret_cast<cuda::Scratch*>(smem);
  const int64_t t = blockIdx.x;
  int32_t* token = p.token + t * p.width;
  float* log_q = p.log_q + t * p.width;
  const int count = p.count[t];
  for (int64_t i = threadIdx.x; i < p.width && !PYSPEC_PLANTED(35); i += kThreads) {
    token[i] = -1;
    log_q[i] = -cuda::kInfinity;
  }
  if (count == 0) return;
  const double inv_t = cuda::inverse_of(p.temperature[t]);
  const cuda::Row row(p.logits + t * p.logits_stride_t, p.V, s);
  if (row.dead()) return;
  const cuda::PlainWeights weights{row, inv_t};
  int taken = 0;  // how many of token[] cannot be drawn any more; those without a token are -1
  const auto weight = [&](float z, int64_t id) {
    for (int c = 0; c < taken; ++c)
      if (token[c] == id) return 0.0;
    return weights.of(z, id);
  };
  const bool iid = p.rule == DrawRule::kIid;
  const int fixed = p.rule == DrawRule::kHybrid ? count - 1 : 0;  // the last children, which are not drawn
  double total = 0;
  for (int j = -1; j < count - fixed;) {
    cuda::lane_sums(p.V, s, [&](int64_t i, double (&w)[4]) {
      cuda::for_each4(row.quad(i), i, [&](int k, float z, int64_t id) { w[k] = weight(z, id); });
    });
    if (j < 0) {  // nothing is taken yet
      j = 0;
      total = cuda::sum_of_lanes(s);
      if (fixed > 0) {
        const int found = cuda::select_first(row, int(min(int64_t(fixed), p.V)), s);
        for (int i = int(threadIdx.x); i < found; i += kThreads) {
          const uint64_t key = s.lists.keys[i];
          if (weights.of(cuda::key_value(key), cuda::key_id(key)) > 0) token[1 + i] = cuda::key_id(key);
        }
        __syncthreads();
        taken = count;
        continue;
      }
    }
    int32_t x;
    do {
      const double u = cuda::uniform(p.seed[t], p.stream[t], p.step[t], p.node[t], cuda::Purpose::kDraft,
                                     PYSPEC_PLANTED(33) ? 0 : j);
      x = cuda::categorical(p.V, u, s, [&](int64_t id) { return weight(row.value(id), id); });
      if (threadIdx.x == 0 && x >= 0) token[j] = x;
      __syncthreads();
      ++j;
    } while (iid && j < count);
    if (x < 0) break;
    taken = iid || PYSPEC_PLANTED(31) ? 0 : j;
  }
  const double log_sum = cuda::log_positive(total);
  for (int i = int(threadIdx.x); i < count; i += kThreads)
    if (token[i] >= 0) log_q[i] = float(row.centred(row.value(token[i])) * weights.inv_t - log_sum);
}

}  // namespace

void draw_children_cuda(const DrawChildrenParams& p, void* stream) {
  if (p.T == 0) return;
  PYSPEC_LAUNCH(draw_rows, unsigned(p.T), kThreads, sizeof(cuda::Scratch), stream, p);
}

}  // namespace pyspec
