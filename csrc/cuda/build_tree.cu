// SPDX-License-Identifier: Apache-2.0
// CUDA build_tree, sm_80 and newer. One block per frontier node reads its row three times (the largest logit,
// the sum, the scores) and leaves its `width` best children in order; then one block per request merges its
// nodes' lists. With noise the logarithms of a score are computed only where a bound from the random word's
// length says that the token may still be among the best.
//
//   PYSPEC_BUG  planted for the tests (1, 3, 4 and 5 of sample.cu are in here too)
//   21          ties between nodes go to the later parent
//   22          nodes that are none get children
//   23          what lies beyond the last child is left as it was
//   24          the noise of one position later
#include <algorithm>

#include "cuda/pipeline.cuh"
#include "cuda/requests.cuh"
#include "pyspec/build_tree.h"

namespace pyspec {
namespace {

using cuda::kChunk;
using cuda::kInfinity;
using cuda::kNoKey;
using cuda::kThreads;
using cuda::Noise;
using cuda::Row;

// The law of one frontier node: w or w / E, and the scores of its children.
struct NodeLaw {
  const Row& row;
  double inv_t, scale;
  bool noisy;
  Noise noise;

  __device__ void operator()(int64_t i, float4 z, double (&w)[4]) const {
    cuda::Weights{row, scale, kNoKey}(i, z, w);
    if (!noisy || i >= row.vocab()) return;
    const Noise::Words words = noise.words(i / 4);
#pragma unroll
    for (int k = 0; k < 4; ++k) w[k] = w[k] / cuda::exponential(words.w[k]);
  }
};

// Keys of the children's scores, in the order score descending, token ascending. Children not below `worst`
// may be left out.
class Children {
 public:
  __device__ Children(const NodeLaw& law, double node_score, double log_sum)
      : law_(law), ahead_(law.row), node_score_(node_score), log_sum_(log_sum) {}

  __device__ void operator()(int64_t i, uint64_t worst, uint64_t (&key)[4]) {
    const Row& row = law_.row;
    const float4 z = ahead_.take(i);
    const float values[4] = {z.x, z.y, z.z, z.w};
    // What d + g must reach: 1e-6 is many roundings of a float32 score.
    const double lowest = worst == kNoKey ? -double(kInfinity) : double(cuda::key_value(worst));
    const double cutoff = lowest - node_score_ + log_sum_ - 1e-6 * (1.0 - lowest);
    Noise::Words words{};
    if (law_.noisy && i < row.vocab()) words = law_.noise.words(i / 4);
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      key[k] = kNoKey;
      double u = row.centred(values[k]) * law_.inv_t;
      if (law_.noisy) {
        if (u + cuda::gumbel_bound(words.w[k]) < cutoff) continue;
        u = u + cuda::gumbel(words.w[k]);
      }
      const float score = float(node_score_ + (u - log_sum_));
      if (score > -kInfinity) key[k] = cuda::make_key(score, i + k);
    }
  }

 private:
  const NodeLaw& law_;
  cuda::Ahead<Row> ahead_;
  double node_score_, log_sum_;
};

__global__ void __launch_bounds__(kThreads, 1) best_children(const BuildTreeParams p, int per_node) {
  PYSPEC_DYNAMIC_SHARED(smem);
  auto& s = *reinterpret_cast<cuda::Scratch*>(smem);
  for (int64_t t = blockIdx.x; t < p.T; t += gridDim.x) {
    const int64_t b = cuda::request_of(p.cu_t, p.B, t);
    if (b < 0) continue;
    int64_t* best = p.node_best + t * per_node;
    const float node_score = p.node_score[t];
    int found = 0;
    if (PYSPEC_PLANTED(22) || fabsf(node_score) < kInfinity) {
      const Row row(p.logits + t * p.logits_stride_t, p.V, s);
      if (!row.dead()) {
        const bool greedy = p.temperature[b] < cuda::kGreedyBelow;
        const double inv_t = greedy ? 1.0 : 1.0 / double(p.temperature[b]);
        const int64_t position = p.position[b] + PYSPEC_PLANTED(24);
        const NodeLaw law{row, inv_t, cuda::kLog2e * inv_t, p.shared_noise && !greedy,
                          Noise(p.seed[b], p.stream[b], position)};
        const double log_sum = cuda::log_positive(cuda::lane_sum(row, s, law));
        found = cuda::select(p.V, per_node, s, Children(law, node_score, log_sum));
      }
    }
    for (int i = int(threadIdx.x); i < per_node; i += kThreads)
      best[i] = int64_t(i < found ? s.lists.keys[i] : kNoKey);
  }
}

// Merges the lists of a request's nodes. An entry's index in them takes the token's place in its key: it
// orders by parent, then by token, as entries of one node and one score stand in that order.
__global__ void __launch_bounds__(kThreads, 1) merge_children(const BuildTreeParams p, int per_node) {
  PYSPEC_DYNAMIC_SHARED(smem);
  auto& s = *reinterpret_cast<cuda::Scratch*>(smem);
  for (int64_t b = blockIdx.x; b < p.B; b += gridDim.x) {
    const int64_t* entries = p.node_best + p.cu_t[b] * int64_t(per_node);
    const int64_t size = (p.cu_t[b + 1] - p.cu_t[b]) * int64_t(per_node);
    const int found = cuda::select(size, int(p.width), s, [&](int64_t i, uint64_t, uint64_t (&key)[4]) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const auto entry = i + k < size ? uint64_t(entries[i + k]) : kNoKey;
        const auto index = uint64_t(PYSPEC_PLANTED(21) ? size - 1 - i - k : i + k);
        key[k] = entry == kNoKey ? kNoKey : (entry & ~uint64_t(0xffffffffu)) | index;
      }
    });
    for (int i = int(threadIdx.x); i < p.width; i += kThreads) {
      const int64_t to = b * p.width + i;
      if (i < found) {
        const uint64_t key = s.lists.keys[i];
        const int64_t index = PYSPEC_PLANTED(21) ? size - 1 - int64_t(uint32_t(key)) : int64_t(uint32_t(key));
        p.token[to] = cuda::key_id(uint64_t(entries[index]));
        p.parent[to] = int32_t(index / per_node);
        p.score[to] = cuda::key_value(key);
      } else if (!PYSPEC_PLANTED(23)) {
        p.token[to] = -1;
        p.parent[to] = -1;
        p.score[to] = -kInfinity;
      }
    }
  }
}

}  // namespace

void build_tree_cuda(const BuildTreeParams& p, void* stream) {
  if (p.B == 0) return;
  const int per_node = int(std::min(p.width, p.V));
  const auto blocks = [](int64_t items) { return unsigned(std::min(items, cuda::kMaxBlocks)); };
  constexpr size_t kSmem = sizeof(cuda::Scratch);
  if (p.T > 0) PYSPEC_LAUNCH(best_children, blocks(p.T), kThreads, kSmem, stream, p, per_node);
  PYSPEC_LAUNCH(merge_children, blocks(p.B), kThreads, kSmem, stream, p, per_node);
}

}  // namespace pyspec
