// SPDX-License-Identifier: Apache-2.0
// CPU sample. One item is one row.
#include "pyspec/sample.h"

#include "cpu/kernel.h"
#include "cpu/pipeline.h"

namespace pyspec::PYSPEC_ISA {

void sample(const SampleParams& p) {
  parallel_for(p.T, [&](int64_t t) {
    pick(
        p.logits + t * p.logits_stride_t, p.edited ? p.edited + t * p.edited_stride_t : nullptr, p.V,
        p.positions[t],
        {p.temperature[t], p.top_p[t], p.min_p[t], p.typical_p[t], p.top_k[t], p.stream[t], p.seed[t]},
        p.with_logprobs, p.num_logprobs,
        {p.token + t, p.logprob + t, p.top_tokens + t * p.num_logprobs, p.top_logprobs + t * p.num_logprobs});
  });
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(sample, SampleParams)
