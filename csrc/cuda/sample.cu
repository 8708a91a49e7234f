// SPDX-License-Identifier: Apache-2.0
// CUDA sample, sm_80 and newer: one block is one row (csrc/cuda/pipeline.cuh). Rows are independent, and
// every number that decides a token is the specification's, so the bits do not depend on threads or their
// order.
//
// Planted bugs:
//   1           the noise's counter holds stream and position in each other's place
//   2           ties of the draw go to the highest id
//   3           the bound below which a token cannot win is one bit too low
//   4           select: the count of keys may change before everyone has read it
//   5           lane sums are folded neighbours first
//   6           top-p trusts sums of another order, however close the cut is
//   7           typical-p, in order: the tokens above the entropy come last
//   8           typical-p counts what min-p has dropped
//   9           typical-p trusts sums of another order, however close its edge is
//   10          the raw row is picked from
//   14          block_min: what a warp found may be overwritten before everyone has read it
#include "cuda/pipeline.cuh"
#include "pyspec/sample.h"

namespace pyspec {
namespace {

__global__ void __launch_bounds__(cuda::kThreads, 1) sample_rows(const SampleParams p) {
  PYSPEC_DYNAMIC_SHARED(smem);
  auto& scratch = *reinterpret_cast<cuda::Scratch*>(smem);
  const int64_t t = blockIdx.x;
  const cuda::Law law{p.temperature[t], p.top_p[t],  p.min_p[t], p.typical_p[t],
                      p.top_k[t],       p.stream[t], p.seed[t]};
  const cuda::Pick out{p.token + t, p.logprob + t, p.top_tokens + t * p.num_logprobs,
                       p.top_logprobs + t * p.num_logprobs};
  cuda::pick(p.logits + t * p.logits_stride_t, p.edited ? p.edited + t * p.edited_stride_t : nullptr, p.V,
             p.positions[t], law, p.with_logprobs, p.num_logprobs, out, scratch);
}

}  // namespace

void sample_cuda(const SampleParams& p, void* stream) {
  if (p.T == 0) return;
  PYSPEC_LAUNCH(sample_rows, unsigned(p.T), cuda::kThreads, sizeof(cuda::Scratch), stream, p);
}

}  // namespace pyspec
