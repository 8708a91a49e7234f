// SPDX-License-Identifier: Apache-2.0
// CUDA verify_drawn, sm_80 and newer: one block is one request. As on the CPU a node's two rows become
// weights in memory, and what is kept of a node are a few numbers; rows that the walk does not need are not
// read. All threads follow the walk alike; thread 0 writes what is kept.
// Everything is inlined: a call would need a stack for the walk's numbers.
//
// Planted bugs:
//   41          what is kept may change before everyone has read it
//   42          every node's number is the root's
//   43          outputs beyond the path keep what was there
//   44          a drawn child that fails takes nothing away
//   45          what may fail with the node itself is left out of its bound
#include "cuda/categorical.cuh"
#include "cuda/pipeline.cuh"
#include "pyspec/verify_drawn.h"

namespace pyspec {
namespace {

using cuda::kThreads;
using cuda::Purpose;

constexpr int32_t kDeterministic = 0, kWithoutReplacement = 2;
constexpr double kLeastHanded = 0x1p-126;

// The weights of a row's law; false if it has none.
__device__ __forceinline__ bool law_weights(const float* logits, int64_t V, const cuda::Law& law, double* to,
                                            cuda::Scratch& s) {
  __syncthreads();  // the lists and the weights have been read
  const cuda::Row row(logits, V, s);
  if (row.dead()) return false;
  const bool greedy = law.temperature < cuda::kGreedyBelow;
  cuda::Survivors left{};
  if (!greedy) {
    const int head = cuda::head_of(law, V), found = head > 0 ? cuda::select_first(row, head, s) : 0;
    left = cuda::filter(row, law, head, found, 0, s);
  }
  const cuda::PlainWeights weights{row, greedy ? 0 : left.inv_t};
  for (int64_t i = threadIdx.x; i < V; i += kThreads) {
    const float z = row.value(i);
    to[i] = greedy || left.has(row, z, i) ? weights.of(z, i) : 0.0;
  }
  __syncthreads();
  return true;
}

class Walk {
 public:
  __device__ __forceinline__ Walk(const VerifyDrawnParams& p, int64_t b, cuda::Scratch& s)
      : p_(p), s_(s), b_(b), begin_(p.cu_t[b]), count_(int32_t(p.cu_t[b + 1] - begin_)) {
    auto* weights = static_cast<double*>(p.workspace);
    target_ = weights + 2 * b * p.V;
    draft_ = target_ + p.V;
    nodes_ = reinterpret_cast<DrawnNode*>(weights + 2 * p.B * p.V) + begin_;
    tokens_ = p.tokens + begin_;
    parents_ = p.parents + begin_;
    drawn_ = p.drawn + begin_;
    if (threadIdx.x == 0) link();
    __syncthreads();
  }

  __device__ __forceinline__ void run() {
    int32_t extra = -1, end = -1;
    if (count_ > 0) {
      end = p_.walk == DrawnWalk::kTarget    ? by_target(extra)
            : p_.walk == DrawnWalk::kTopDown ? top_down(extra)
                                             : traversal(extra);
    }
    emit(end, extra);
  }

 private:
  __device__ __forceinline__ void link() {
    for (int32_t i = 0; i < count_; ++i) nodes_[i] = {-1, -1, -1, -1, 0, 0, 0, 0, 0};
    for (int32_t i = 1; i < count_; ++i) {
      DrawnNode& parent = nodes_[parents_[i]];
      nodes_[i].previous = parent.last_child;
      (parent.last_child < 0 ? parent.first_child : nodes_[parent.last_child].next) = i;
      parent.last_child = i;
    }
  }

  // Thread 0 writes what all have read, and all read it again.
  template <typename Write>
  __device__ __forceinline__ void update(Write write) {
    if (!PYSPEC_PLANTED(41)) __syncthreads();
    if (threadIdx.x == 0) write();
    __syncthreads();
  }

  __device__ __forceinline__ double number(int32_t node, Purpose purpose) const {
    return cuda::uniform(p_.seed[b_], p_.stream[b_], p_.step[b_], PYSPEC_PLANTED(42) ? 0 : node, purpose);
  }

  __device__ __forceinline__ bool load_target(int32_t node) {
    const float* row = p_.edited ? p_.edited + (begin_ + node) * p_.edited_stride_t
                                 : p_.logits + (begin_ + node) * p_.logits_stride_t;
    const cuda::Law law{p_.temperature[b_], p_.top_p[b_],  p_.min_p[b_], p_.typical_p[b_],
                        p_.top_k[b_],       p_.stream[b_], p_.seed[b_]};
    return law_weights(row, p_.V, law, target_, s_);
  }

  __device__ __forceinline__ bool load_draft(int32_t node) {
    const int32_t index = p_.draft_row[begin_ + node];
    bool needed = false;
    for (int32_t c = nodes_[node].first_child; c >= 0; c = nodes_[c].next)
      needed |= drawn_[c] != kDeterministic;
    if (!needed || index < 0) return false;
    const cuda::Law law{p_.draft_temperature[b_], 1, 0, 1, 0, 0, 0};
    return law_weights(p_.draft_logits + index * p_.draft_stride_r, p_.V, law, draft_, s_);
  }

  // The node before any child is looked at: the weights of deterministic children stand with them meanwhile.
  __device__ __forceinline__ bool load(int32_t node, double a) {
    if (!load_target(node)) return false;
    node_ = node;
    alpha_ = a / sum([&](int64_t i) { return target_[i]; });
    a_ = mass_ = a;
    rho_ = 0;
    has_draft_ = load_draft(node);
    update([&] {
      for (int32_t c = nodes_[node].first_child; c >= 0; c = nodes_[c].next) {
        if (drawn_[c] != kDeterministic) continue;
        nodes_[c].weight = target_[tokens_[c]];
        target_[tokens_[c]] = 0;
        if (has_draft_) draft_[tokens_[c]] = 0;
      }
    });
    return true;
  }

  template <typename Value>
  __device__ __forceinline__ void add_up(Value value) {
    cuda::lane_sums(p_.V, s_, [&](int64_t i, double (&w)[4]) {
#pragma unroll
      for (int k = 0; k < 4; ++k) w[k] = i + k < p_.V ? value(i + k) : 0.0;
    });
  }
  template <typename Value>
  __device__ __forceinline__ double sum(Value value) {
    add_up(value);
    return cuda::sum_of_lanes(s_);
  }

  __device__ __forceinline__ double phi() const { return PYSPEC_PLANTED(45) ? mass_ : (1.0 - a_) + mass_; }
  __device__ __forceinline__ double residual(double target, double draft) const {
    const double m = alpha_ * target - rho_ * draft;
    return m > 0 ? m : 0;
  }
  __device__ __forceinline__ double residual_at(int64_t i) const {
    return residual(target_[i], has_draft_ ? draft_[i] : 0.0);
  }

  // Phi / Z of a drawn child: Z leaves out what was drawn without replacement before it.
  __device__ __forceinline__ double scale(int32_t child) {
    const auto swap_tried = [&](bool out) {
      update([&] {
        for (int32_t c = nodes_[node_].first_child; c != child; c = nodes_[c].next) {
          if (drawn_[c] != kWithoutReplacement || !nodes_[c].failed) continue;
          if (out) nodes_[c].weight = draft_[tokens_[c]];
          draft_[tokens_[c]] = out ? 0 : nodes_[c].weight;
        }
      });
    };
    swap_tried(true);
    const double left = sum([&](int64_t i) { return draft_[i]; });
    swap_tried(false);
    return phi() / left;
  }

  // The child may be accepted with `mass` of `bound`; bound 0: its own law cannot give it.
  struct Offer {
    double mass, bound, scale;
  };
  __device__ __forceinline__ Offer offer(int32_t child) {
    const int32_t x = tokens_[child];
    if (drawn_[child] == kDeterministic) return {residual(nodes_[child].weight, 0), phi(), 0};
    if (!has_draft_ || draft_[x] == 0) return {0, 0, 0};
    const double s = scale(child);
    return {residual_at(x), s * draft_[x], s};
  }

  __device__ __forceinline__ void fail(int32_t child, const Offer& offered) {
    if (offered.bound == 0) return;
    const bool fixed = drawn_[child] == kDeterministic;
    const double rho = rho_, weight = nodes_[child].weight;
    if (!fixed && !PYSPEC_PLANTED(44)) rho_ = rho_ + offered.scale;
    update([&] {
      if (fixed) nodes_[child].weight = 0;
    });
    double mass = sum([&](int64_t i) { return residual_at(i); });
    for (int32_t i = nodes_[node_].last_child; i >= 0; i = nodes_[i].previous)
      if (drawn_[i] == kDeterministic) mass += residual(nodes_[i].weight, 0);
    const bool could = mass > 0 || a_ < 1;  // else its probability was rounded
    if (could) {
      mass_ = mass;
    } else {
      rho_ = rho;
    }
    update([&] {
      nodes_[child].failed = could || !fixed;
      if (!could) nodes_[child].weight = weight;
    });
  }

  // The token after the loaded node, by what is left of it.
  __device__ __forceinline__ int32_t draw_extra() {
    update([&] {
      for (int32_t c = nodes_[node_].first_child; c >= 0; c = nodes_[c].next)
        if (drawn_[c] == kDeterministic && !nodes_[c].failed) target_[tokens_[c]] = nodes_[c].weight;
    });
    return draw(node_, [&](int64_t i) { return residual_at(i); });
  }

  template <typename Value>
  __device__ __forceinline__ int32_t draw(int32_t node, Value value) {
    add_up(value);
    return cuda::categorical(p_.V, number(node, Purpose::kExtra), s_, value);
  }

  __device__ __forceinline__ int32_t by_target(int32_t& extra) {
    for (int32_t node = 0, child;; node = child) {
      extra = load_target(node) ? draw(node, [&](int64_t i) { return target_[i]; }) : -1;
      for (child = nodes_[node].first_child; child >= 0 && tokens_[child] != extra;)
        child = nodes_[child].next;
      if (child < 0) return node;
    }
  }

  __device__ __forceinline__ int32_t top_down(int32_t& extra) {
    for (int32_t node = 0, child;; node = child) {
      if (!load(node, 1)) return node;
      for (child = nodes_[node].first_child; child >= 0; child = nodes_[child].next) {
        const Offer offered = offer(child);
        if (number(child, Purpose::kAccept) * offered.bound < offered.mass) break;
        fail(child, offered);
      }
      if (child >= 0) continue;
      extra = draw_extra();
      return node;
    }
  }

  // Goes down along first children; a node decides when all below it have refused.
  __device__ __forceinline__ int32_t traversal(int32_t& extra) {
    update([&] { nodes_[0].handed = 1; });
    int32_t node = 0;
    for (bool entered = true;;) {
      if (entered && hand_down(node)) {
        node = nodes_[node].first_child;
        continue;
      }
      const double handed = nodes_[node].handed, mass = nodes_[node].mass;
      if (node == 0 || number(node, Purpose::kAccept) * ((1.0 - handed) + mass) < mass) break;
      entered = nodes_[node].next >= 0;
      node = entered ? nodes_[node].next : parents_[node];
    }
    if (load(node, nodes_[node].handed)) {
      rho_ = nodes_[node].rho;
      extra = draw_extra();
    }
    return node;
  }

  // What the children are handed, and the node once they have all failed; false: none of them is looked at.
  __device__ __forceinline__ bool hand_down(int32_t node) {
    const double handed = nodes_[node].handed;
    const bool loaded = handed > 0 && nodes_[node].first_child >= 0 && load(node, handed);
    if (loaded) {
      for (int32_t c = nodes_[node].first_child; c >= 0; c = nodes_[c].next) {
        const Offer offered = offer(c);
        const double share = offered.bound > 0 ? fmin(1.0, offered.mass / offered.bound) : 0;
        update([&] { nodes_[c].handed = share >= kLeastHanded ? share : 0; });
        fail(c, offered);
      }
    }
    update([&] {
      nodes_[node].mass = loaded ? mass_ : handed;
      nodes_[node].rho = loaded ? rho_ : 0;
    });
    return loaded;
  }

  __device__ __forceinline__ void emit(int32_t end, int32_t extra) {
    const int64_t row = b_ * p_.max_path, N = p_.num_logprobs;
    int64_t depth = 0;
    for (int32_t node = end; node >= 0; node = parents_[node]) ++depth;
    const int64_t written = min(depth, p_.max_path);
    if (threadIdx.x == 0) p_.path_len[b_] = int32_t(written);
    for (int64_t i = row + written + threadIdx.x; i < row + p_.max_path && !PYSPEC_PLANTED(43);
         i += kThreads) {
      p_.path[i] = p_.emitted[i] = -1;
      p_.logprobs[i] = 0.0f;
    }
    for (int64_t i = (row + written) * N + threadIdx.x; i < (row + p_.max_path) * N; i += kThreads) {
      p_.top_tokens[i] = -1;
      p_.top_logprobs[i] = 0.0f;
    }
    for (int32_t node = end; node >= 0; extra = tokens_[node], node = parents_[node]) {
      if (--depth >= p_.max_path) continue;
      const int64_t at = row + depth;
      if (threadIdx.x == 0) p_.path[at] = node;
      report(node, extra,
             {p_.emitted + at, p_.logprobs + at, p_.top_tokens + at * N, p_.top_logprobs + at * N});
    }
  }

  __device__ __forceinline__ void report(int32_t node, int32_t token, const cuda::Pick& out) {
    if (token < 0) return cuda::report_nothing(0, p_.num_logprobs, out);
    if (p_.with_logprobs) {
      __syncthreads();  // the lists have been read
      const float* logits = p_.logits + (begin_ + node) * p_.logits_stride_t;
      return cuda::report_raw(logits, p_.V, token, p_.num_logprobs, out, s_);
    }
    if (threadIdx.x == 0) *out.token = token;
    if (threadIdx.x == 0) *out.logprob = 0.0f;
  }

  const VerifyDrawnParams& p_;
  cuda::Scratch& s_;
  const int64_t b_, begin_;
  const int32_t count_;
  const int32_t *tokens_, *parents_, *drawn_;
  double *target_, *draft_;  // weights [V] of the loaded node's laws
  DrawnNode* nodes_;
  int32_t node_ = 0;
  double alpha_ = 0, a_ = 0, mass_ = 0, rho_ = 0;
  bool has_draft_ = false;
};

__global__ void __launch_bounds__(kThreads, 1) walk_drawn(const VerifyDrawnParams p) {
  PYSPEC_DYNAMIC_SHARED(smem);
  Walk(p, blockIdx.x, *reinterpret_cast<cuda::Scratch*>(smem)).run();
}

}  // namespace

void verify_drawn_cuda(const VerifyDrawnParams& p, void* stream) {
  if (p.B == 0) return;
  PYSPEC_LAUNCH(walk_drawn, unsigned(p.B), kThreads, sizeof(cuda::Scratch), stream, p);
}

}  // namespace pyspec
