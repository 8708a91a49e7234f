// SPDX-License-Identifier: Apache-2.0
// CUDA build_tree, sm_80 and newer. One block per frontier node reads its row three times (the largest logit,
// the sum, the scores) and leaves its `width` best children in order; then one block per request merges its
// nodes' lists. With noise the logarithms of a score are computed only where a bound from the random word's
// length says that the token may still be among the best.
//
// Planted bugs (1, 3, 4, 5 and 14 of sample.cu are in here too):
//   21          ties between nodes go to the later parent
//   22          nodes that are none get children
//   23          what lies beyond the last child is left as it was
//   24          the noise of one position later
//   25          noise by the columns' numbers where they have tokens
//   26          columns' numbers in the place of tokens
#include <algorithm>

#include "cuda/logits.cuh"
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

// The law of one frontier node: the scores of its children. Items are columns; ids[column] is the column's
// token, or the column itself where ids is null. Both ascend together: either orders ties.
class NodeLaw {
 public:
  __device__ NodeLaw(const Row& row, double inv_t, bool noisy, const Noise& noise, const int32_t* ids,
                     float node_score)
      : row_(row),
        noise_(noise),
        ids_(PYSPEC_PLANTED(25) ? nullptr : ids),
        inv_t_(inv_t),
        node_score_(double(node_score)),
        noisy_(noisy) {}

  // Weights w, or w / E, of four tokens. Remembers the heaviest of this thread.
  __device__ void operator()(int64_t i, float4 z, double (&w)[4]) {
    cuda::Weights{row_, cuda::kLog2e * inv_t_, kNoKey}(i, z, w);
    if (i >= row_.vocab()) return;
    const Noise::Words words = noisy_ ? words_of(i) : Noise::Words{};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      if (noisy_) w[k] = w[k] / cuda::exponential(words.w[k]);
      if (w[k] > heaviest_) {
        heaviest_ = w[k];
        own_ = i + k;
      }
    }
  }

  __device__ void set_sum(double sum) { log_sum_ = cuda::log_positive(sum); }

  // The key of the heaviest child of this thread, kNoKey if it has none.
  __device__ uint64_t own() const {
    if (heaviest_ == 0) return kNoKey;
    const double d = row_.centred(row_.value(own_)) * inv_t_;
    return key(noisy_ ? d + cuda::gumbel(noise_.word(ids_ ? ids_[own_] : own_)) : d, own_);
  }

  // Keys of four children: score descending, token ascending. Those beyond `worst` may be left out.
  __device__ void keys(int64_t i, float4 z, uint64_t worst, uint64_t (&to)[4]) const {
    const float values[4] = {z.x, z.y, z.z, z.w};
    // What d + g must reach: 1e-6 is many roundings of a float32 score.
    const double lowest = worst == kNoKey ? -double(kInfinity) : double(cuda::key_value(worst));
    const double cutoff = lowest - node_score_ + log_sum_ - 1e-6 * (1.0 - lowest);
    const Noise::Words words = noisy_ && i < row_.vocab() ? words_of(i) : Noise::Words{};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const double d = row_.centred(values[k]) * inv_t_;
      if (!noisy_) {
        to[k] = key(d, i + k);
      } else if (d + cuda::gumbel_bound(words.w[k]) < cutoff) {
        to[k] = kNoKey;
      } else {
        to[k] = key(d + cuda::gumbel(words.w[k]), i + k);
      }
    }
  }

 private:
  __device__ uint64_t key(double u, int64_t column) const {
    const float score = float(node_score_ + (u - log_sum_));
    return score > -kInfinity ? cuda::make_key(score, column) : kNoKey;
  }

  // The random words of columns i .. i + 3; any beyond the row.
  __device__ Noise::Words words_of(int64_t i) const {
    if (!ids_) return noise_.words(i / 4);
    Noise::Words words = {};
#pragma unroll
    for (int k = 0; k < 4; ++k)
      if (i + k < row_.vocab()) words.w[k] = noise_.word(ids_[i + k]);
    return words;
  }

  const Row& row_;
  const Noise& noise_;
  const int32_t* ids_;
  double inv_t_, node_score_, log_sum_ = 0, heaviest_ = 0;
  int64_t own_ = 0;
  bool noisy_;
};

__global__ void __launch_bounds__(kThreads, 1) best_children(const BuildTreeParams p, int per_node) {
  PYSPEC_DYNAMIC_SHARED(smem);
  auto& s = *reinterpret_cast<cuda::Scratch*>(smem);
  const int64_t t = blockIdx.x, b = cuda::request_of(p.cu_t, p.B, t);
  if (b < 0) return;
  int64_t* best = p.node_best + t * per_node;
  const float node_score = p.node_score[t];
  int found = 0;
  if (PYSPEC_PLANTED(22) || fabsf(node_score) < kInfinity) {
    const Row row(p.logits + t * p.logits_stride_t, p.V, s);
    if (!row.dead()) {
      const bool greedy = p.temperature[b] < cuda::kGreedyBelow;
      const double inv_t = greedy ? 1.0 : 1.0 / double(p.temperature[b]);
      const Noise noise(p.seed[b], p.stream[b], p.position[b] + PYSPEC_PLANTED(24));
      NodeLaw law(row, inv_t, p.shared_noise && !greedy, noise, p.ids, node_score);
      law.set_sum(cuda::lane_sum(row, s, law));
      const uint64_t beyond = cuda::beyond_first(law.own(), per_node, s);
      cuda::Ahead<Row> ahead(row);
      found = cuda::select(p.V, per_node, beyond, s, [&](int64_t i, uint64_t worst, uint64_t (&key)[4]) {
        law.keys(i, ahead.take(i), worst, key);
      });
    }
  }
  for (int i = int(threadIdx.x); i < per_node; i += kThreads)
    best[i] = int64_t(i < found ? s.lists.keys[i] : kNoKey);
}

// Merges the lists of a request's nodes. An entry's index in them takes the token's place in its key: it
// orders by parent, then by token, as entries of one node and one score stand in that order.
__global__ void __launch_bounds__(kThreads, 1) merge_children(const BuildTreeParams p, int per_node) {
  PYSPEC_DYNAMIC_SHARED(smem);
  auto& s = *reinterpret_cast<cuda::Scratch*>(smem);
  const int64_t b = blockIdx.x;
  const int64_t* entries = p.node_best + p.cu_t[b] * int64_t(per_node);
  const int64_t size = (p.cu_t[b + 1] - p.cu_t[b]) * int64_t(per_node);
  const int found = cuda::select(size, int(p.width), kNoKey, s, [&](int64_t i, uint64_t, uint64_t (&key)[4]) {
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
      const int32_t column = cuda::key_id(uint64_t(entries[index]));
      p.token[to] = p.ids && !PYSPEC_PLANTED(26) ? p.ids[column] : column;
      p.parent[to] = int32_t(index / per_node);
      p.score[to] = cuda::key_value(key);
    } else if (!PYSPEC_PLANTED(23)) {
      p.token[to] = -1;
      p.parent[to] = -1;
      p.score[to] = -kInfinity;
    }
  }
}

}  // namespace

void build_tree_cuda(const BuildTreeParams& p, void* stream) {
  if (p.B == 0) return;
  const int per_node = int(std::min(p.width, p.V));
  constexpr size_t kSmem = sizeof(cuda::Scratch);
  if (p.T > 0) PYSPEC_LAUNCH(best_children, unsigned(p.T), kThreads, kSmem, stream, p, per_node);
  PYSPEC_LAUNCH(merge_children, unsigned(p.B), kThreads, kSmem, stream, p, per_node);
}

}  // namespace pyspec
