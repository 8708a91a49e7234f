// SPDX-License-Identifier: Apache-2.0
// CPU verify_tree. One item is one request; it walks from node to node.
#include "pyspec/verify_tree.h"

#include "cpu/kernel.h"
#include "cpu/pipeline.h"

namespace pyspec::PYSPEC_ISA {
namespace {

void walk(const VerifyTreeParams& p, int64_t b) {
  const int64_t begin = p.cu_t[b], nodes = p.cu_t[b + 1] - begin, row = b * p.max_path, N = p.num_logprobs;
  const Law law{p.temperature[b], p.top_p[b], p.min_p[b], p.typical_p[b], p.top_k[b], p.stream[b], p.seed[b]};
  const int32_t *tokens = p.tokens + begin, *parents = p.parents + begin;
  int64_t depth = 0;
  for (int64_t node = 0, next; node < nodes; node = next, ++depth) {
    int32_t* token = p.emitted + row + depth;
    pick(p.logits + (begin + node) * p.logits_stride_t,
         p.edited ? p.edited + (begin + node) * p.edited_stride_t : nullptr, p.V,
         int64_t(p.position[b]) + depth + 1, law, p.with_logprobs, N,
         {token, p.logprobs + row + depth, p.top_tokens + (row + depth) * N,
          p.top_logprobs + (row + depth) * N});
    p.path[row + depth] = int32_t(node);
    for (next = node + 1; next < nodes && !(parents[next] == node && tokens[next] == *token);) ++next;
  }
  p.path_len[b] = int32_t(depth);
  const int64_t rest = p.max_path - depth;
  std::fill_n(p.path + row + depth, rest, -1);
  std::fill_n(p.emitted + row + depth, rest, -1);
  std::fill_n(p.logprobs + row + depth, rest, 0.0f);
  std::fill_n(p.top_tokens + (row + depth) * N, rest * N, -1);
  std::fill_n(p.top_logprobs + (row + depth) * N, rest * N, 0.0f);
}

}  // namespace

void verify_tree(const VerifyTreeParams& p) {
  parallel_for(p.B, [&](int64_t b) { walk(p, b); });
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(verify_tree, VerifyTreeParams)
