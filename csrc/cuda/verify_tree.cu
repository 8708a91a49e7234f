// SPDX-License-Identifier: Apache-2.0
// CUDA verify_tree, sm_80 and newer. Up to 264 nodes (picks_all_nodes): one block per node picks from its
// row, all at once, then a block per request follows the pointers; rows that turn out not to be walked are
// read on multiprocessors that would idle, and one pass over a row is all the time it takes. More nodes: a
// block per request picks from the rows of its path one after another, and reads no others. Both walks are
// one function. A pick is a function of its row, the request and the absolute position, so both give the same
// bits.
//
// Planted bugs (1 .. 6 and 14 of sample.cu are in here too):
//   11          every node has the root's position
//   12          of equal siblings the last is walked
//   13          what lies beyond path_len is left as it was
#include "cuda/pipeline.cuh"
#include "cuda/requests.cuh"
#include "pyspec/verify_tree.h"

namespace pyspec {
namespace {

using cuda::kThreads;

__device__ cuda::Law law_of(const VerifyTreeParams& p, int64_t b) {
  return {p.temperature[b], p.top_p[b], p.min_p[b], p.typical_p[b], p.top_k[b], p.stream[b], p.seed[b]};
}

// Where the pick of entry i of `tokens` and `logprobs` goes, and its most likely tokens.
__device__ cuda::Pick place(int32_t* tokens, float* logprobs, int32_t* top_tokens, float* top_logprobs,
                            int64_t i, int64_t num_logprobs) {
  return {tokens + i, logprobs + i, top_tokens + i * num_logprobs, top_logprobs + i * num_logprobs};
}
__device__ cuda::Pick path_place(const VerifyTreeParams& p, int64_t i) {
  return place(p.emitted, p.logprobs, p.top_tokens, p.top_logprobs, i, p.num_logprobs);
}
__device__ cuda::Pick node_place(const VerifyTreeParams& p, int64_t t) {
  return place(p.node_picks, p.node_logprobs, p.node_picks + p.T, p.node_logprobs + p.T, t, p.num_logprobs);
}

// The pick of node `node` (of all requests) of request b.
__device__ int32_t pick_at(const VerifyTreeParams& p, int64_t node, int64_t b, int64_t depth,
                           const cuda::Pick& out, cuda::Scratch& s) {
  const float* edited = p.edited ? p.edited + node * p.edited_stride_t : nullptr;
  return cuda::pick(p.logits + node * p.logits_stride_t, edited, p.V, int64_t(p.position[b]) + depth + 1,
                    law_of(p, b), p.with_logprobs, p.num_logprobs, out, s);
}

// Walks request b: pick_node(t, depth, out) gives the token of node t (of all requests) and writes it to
// `out`.
template <typename PickNode>
__device__ void walk(const VerifyTreeParams& p, int64_t b, cuda::Scratch& s, PickNode pick_node) {
  const int64_t begin = p.cu_t[b], nodes = p.cu_t[b + 1] - begin, row = b * p.max_path, N = p.num_logprobs;
  const int32_t *tokens = p.tokens + begin, *parents = p.parents + begin;
  const int t = int(threadIdx.x);
  int64_t depth = 0;
  for (int64_t node = 0; node < nodes && depth < p.max_path; ++depth) {
    const int32_t token = pick_node(begin + node, depth, path_place(p, row + depth));
    if (t == 0) p.path[row + depth] = int32_t(node);
    uint64_t next = uint64_t(nodes);
    for (int64_t i = nodes - 1 - t; i > node; i -= kThreads)  // backwards: the first child is what remains
      if (parents[i] == node && tokens[i] == token) next = uint64_t(PYSPEC_PLANTED(12) ? nodes - i : i);
    next = cuda::block_min(next, s);
    if (PYSPEC_PLANTED(12) && next < uint64_t(nodes)) next = uint64_t(nodes) - next;
    node = int64_t(next);
  }
  if (t == 0) p.path_len[b] = int32_t(depth);
  if (PYSPEC_PLANTED(13)) return;
  for (int64_t i = row + depth + t; i < row + p.max_path; i += kThreads) {
    p.path[i] = -1;
    p.emitted[i] = -1;
    p.logprobs[i] = 0.0f;
  }
  for (int64_t i = (row + depth) * N + t; i < (row + p.max_path) * N; i += kThreads) {
    p.top_tokens[i] = -1;
    p.top_logprobs[i] = 0.0f;
  }
}

__global__ void __launch_bounds__(kThreads, 1) walk_rows(const VerifyTreeParams p) {
  PYSPEC_DYNAMIC_SHARED(smem);
  auto& scratch = *reinterpret_cast<cuda::Scratch*>(smem);
  const int64_t b = blockIdx.x;
  walk(p, b, scratch, [&](int64_t node, int64_t depth, const cuda::Pick& out) {
    return pick_at(p, node, b, depth, out, scratch);
  });
}

// One block picks from one node's row; its depth is the number of its ancestors.
__global__ void __launch_bounds__(kThreads, 1) pick_nodes(const VerifyTreeParams p) {
  PYSPEC_DYNAMIC_SHARED(smem);
  auto& scratch = *reinterpret_cast<cuda::Scratch*>(smem);
  const int64_t node = blockIdx.x, b = cuda::request_of(p.cu_t, p.B, node);
  if (b < 0) return;
  const int64_t begin = p.cu_t[b];
  int64_t depth = 0;
  if (!PYSPEC_PLANTED(11))
    for (int64_t i = p.parents[node]; i >= 0 && depth < p.max_path; i = p.parents[begin + i]) ++depth;
  if (depth >= p.max_path) return;  // no walk comes here
  pick_at(p, node, b, depth, node_place(p, node), scratch);
}

__global__ void __launch_bounds__(kThreads, 1) follow_picks(const VerifyTreeParams p) {
  PYSPEC_DYNAMIC_SHARED(smem);
  auto& scratch = *reinterpret_cast<cuda::Scratch*>(smem);
  walk(p, blockIdx.x, scratch, [&](int64_t node, int64_t, const cuda::Pick& out) {
    const cuda::Pick from = node_place(p, node);
    if (threadIdx.x == 0) *out.token = *from.token;
    if (threadIdx.x == 0) *out.logprob = *from.logprob;
    for (int64_t i = threadIdx.x; i < p.num_logprobs; i += kThreads) {
      out.top_tokens[i] = from.top_tokens[i];
      out.top_logprobs[i] = from.top_logprobs[i];
    }
    return *from.token;
  });
}

}  // namespace

void verify_tree_cuda(const VerifyTreeParams& p, void* stream) {
  if (p.B == 0) return;
  constexpr size_t kSmem = sizeof(cuda::Scratch);
  if (!picks_all_nodes(p.T)) {
    PYSPEC_LAUNCH(walk_rows, unsigned(p.B), kThreads, kSmem, stream, p);
    return;
  }
  if (p.T > 0) PYSPEC_LAUNCH(pick_nodes, unsigned(p.T), kThreads, kSmem, stream, p);
  PYSPEC_LAUNCH(follow_picks, unsigned(p.B), kThreads, kSmem, stream, p);
}

}  // namespace pyspec
