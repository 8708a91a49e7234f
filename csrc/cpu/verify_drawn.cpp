// SPDX-License-Identifier: Apache-2.0
// CPU verify_drawn. One item is one request. A node's two rows become weights in scratch of one row each;
// what is kept of a node are a few numbers. Rows that the walk does not need are not read.
#include "pyspec/verify_drawn.h"

#include "cpu/categorical.h"
#include "cpu/kernel.h"

namespace pyspec::PYSPEC_ISA {
namespace {

constexpr int32_t kDeterministic = 0, kWithoutReplacement = 2;
constexpr double kLeastHanded = 0x1p-126;

struct Node {
  int32_t first_child, last_child, next, previous;  // siblings; -1: none
  double handed;                                    // a
  double mass, rho;                                 // once all its children have failed
  double weight;                                    // of its token, taken out of its parent's row
  bool failed;
};

class Walk {
 public:
  Walk(const VerifyDrawnParams& p, int64_t b)
      : p_(p),
        b_(b),
        begin_(p.cu_t[b]),
        count_(p.cu_t[b + 1] - begin_),
        size_(Row::padded(p.V)),
        tokens_(p.tokens + begin_),
        parents_(p.parents + begin_),
        drawn_(p.drawn + begin_),
        uniform_{p.seed[b], p.stream[b], p.step[b]} {
    const size_t rows = 2 * size_t(size_) * sizeof(double);
    auto* memory = static_cast<char*>(thread_scratch(rows + size_t(count_) * sizeof(Node), 1));
    target_ = reinterpret_cast<double*>(memory);
    draft_ = target_ + size_;
    nodes_ = reinterpret_cast<Node*>(draft_ + size_);
    std::fill_n(nodes_, count_, Node{-1, -1, -1, -1, 0, 0, 0, 0, false});
    for (int32_t i = 1; i < count_; ++i) {
      Node& parent = nodes_[parents_[i]];
      nodes_[i].previous = parent.last_child;
      (parent.last_child < 0 ? parent.first_child : nodes_[parent.last_child].next) = i;
      parent.last_child = i;
    }
  }

  void run() {
    int32_t extra = -1;
    int64_t end = -1;
    if (count_ > 0) {
      end = p_.walk == DrawnWalk::kTarget    ? by_target(extra)
            : p_.walk == DrawnWalk::kTopDown ? top_down(extra)
                                             : traversal(extra);
    }
    emit(end, extra);
  }

 private:
  // The weights of the node's law in target_; false if its row has none.
  bool load_target(int64_t node) {
    const float* rows = p_.edited ? p_.edited : p_.logits;
    const int64_t stride = p_.edited ? p_.edited_stride_t : p_.logits_stride_t;
    const Law law{p_.temperature[b_], p_.top_p[b_],  p_.min_p[b_], p_.typical_p[b_],
                  p_.top_k[b_],       p_.stream[b_], p_.seed[b_]};
    Row row(rows + (begin_ + node) * stride, p_.V);
    return law_weights(row, p_.V, law, target_);
  }

  bool load_draft(int64_t node) {
    const int32_t index = p_.draft_row[begin_ + node];
    bool needed = false;
    for (int32_t c = nodes_[node].first_child; c >= 0; c = nodes_[c].next)
      needed |= drawn_[c] != kDeterministic;
    if (!needed || index < 0) return false;
    const Law law{.temperature = p_.draft_temperature[b_], .top_p = 1, .min_p = 0, .typical_p = 1};
    Row row(p_.draft_logits + index * p_.draft_stride_r, p_.V);
    return law_weights(row, p_.V, law, draft_);
  }

  // The node before any child is looked at: the weights of deterministic children stand with them meanwhile.
  bool load(int64_t node, double a) {
    if (!load_target(node)) return false;
    node_ = node;
    alpha_ = a / lane_sum(target_, size_);
    a_ = mass_ = a;
    rho_ = 0;
    has_draft_ = load_draft(node);
    for (int32_t c = nodes_[node].first_child; c >= 0; c = nodes_[c].next) {
      if (drawn_[c] != kDeterministic) continue;
      nodes_[c].weight = std::exchange(target_[tokens_[c]], 0.0);
      if (has_draft_) draft_[tokens_[c]] = 0;
    }
    return true;
  }

  double phi() const { return (1.0 - a_) + mass_; }
  double residual(double target, double draft) const {
    const double m = alpha_ * target - rho_ * draft;
    return m > 0 ? m : 0;
  }
  F64 residuals(int64_t i) const {
    F64 m = load_wide(target_ + i) * alpha_;
    if (has_draft_) m = m - load_wide(draft_ + i) * rho_;
    return m > 0.0 ? m : F64{};
  }

  // Phi / Z of a drawn child: Z leaves out what was drawn without replacement before it.
  double scale(int32_t child) {
    const auto tried = [&](int32_t c) { return drawn_[c] == kWithoutReplacement && nodes_[c].failed; };
    const int32_t first = nodes_[node_].first_child;
    for (int32_t c = first; c != child; c = nodes_[c].next)
      if (tried(c)) nodes_[c].weight = std::exchange(draft_[tokens_[c]], 0.0);
    const double sum = lane_sum(draft_, size_);
    for (int32_t c = first; c != child; c = nodes_[c].next)
      if (tried(c)) draft_[tokens_[c]] = nodes_[c].weight;
    return phi() / sum;
  }

  // The child may be accepted with `mass` of `bound`; bound 0: its own law cannot give it.
  struct Offer {
    double mass, bound, scale;
  };
  Offer offer(int32_t child) {
    const int32_t x = tokens_[child];
    if (drawn_[child] == kDeterministic) return {residual(nodes_[child].weight, 0), phi(), 0};
    if (!has_draft_ || draft_[x] == 0) return {0, 0, 0};
    const double s = scale(child);
    return {residual(target_[x], draft_[x]), s * draft_[x], s};
  }

  void fail(int32_t child, const Offer& offered) {
    if (offered.bound == 0) return;
    Node& c = nodes_[child];
    const double rho = rho_, weight = c.weight;
    const bool fixed = drawn_[child] == kDeterministic;
    (fixed ? c.weight : rho_) = fixed ? 0 : rho_ + offered.scale;
    double mass = Lanes(size_, [&](int64_t i) { return residuals(i); }).total();
    for (int32_t i = nodes_[node_].last_child; i >= 0; i = nodes_[i].previous)
      if (drawn_[i] == kDeterministic) mass += residual(nodes_[i].weight, 0);
    c.failed = true;
    if (mass > 0 || a_ < 1) {
      mass_ = mass;
    } else {  // it could not have failed: its probability was rounded
      rho_ = rho;
      c.weight = weight;
      c.failed = !fixed;
    }
  }

  // The token after the loaded node, by what is left of it.
  int32_t draw_extra() {
    for (int32_t c = nodes_[node_].first_child; c >= 0; c = nodes_[c].next)
      if (drawn_[c] == kDeterministic && !nodes_[c].failed) target_[tokens_[c]] = nodes_[c].weight;
    const auto value = [&](int64_t i) { return residual(target_[i], has_draft_ ? draft_[i] : 0); };
    return categorical(
        size_, uniform_(node_, Purpose::kExtra), [&](int64_t i) { return residuals(i); }, value);
  }

  int64_t by_target(int32_t& extra) {
    for (int32_t node = 0, child;; node = child) {
      extra = load_target(node) ? categorical(target_, size_, uniform_(node, Purpose::kExtra)) : -1;
      for (child = nodes_[node].first_child; child >= 0 && tokens_[child] != extra;)
        child = nodes_[child].next;
      if (child < 0) return node;
    }
  }

  int64_t top_down(int32_t& extra) {
    for (int32_t node = 0, child;; node = child) {
      if (!load(node, 1)) return node;
      for (child = nodes_[node].first_child; child >= 0; child = nodes_[child].next) {
        const Offer offered = offer(child);
        if (uniform_(child, Purpose::kAccept) * offered.bound < offered.mass) break;
        fail(child, offered);
      }
      if (child >= 0) continue;
      extra = draw_extra();
      return node;
    }
  }

  // Goes down along first children; a node decides when all below it have refused.
  int64_t traversal(int32_t& extra) {
    nodes_[0].handed = 1;
    int32_t node = 0;
    for (bool entered = true;;) {
      if (entered && hand_down(node)) {
        node = nodes_[node].first_child;
        continue;
      }
      const Node& n = nodes_[node];
      if (node == 0 || uniform_(node, Purpose::kAccept) * ((1.0 - n.handed) + n.mass) < n.mass) break;
      entered = n.next >= 0;
      node = entered ? n.next : parents_[node];
    }
    if (load(node, nodes_[node].handed)) {
      rho_ = nodes_[node].rho;
      extra = draw_extra();
    }
    return node;
  }

  // What the children are handed, and the node once they have all failed; false: none of them is looked at.
  bool hand_down(int32_t node) {
    Node& n = nodes_[node];
    n.mass = n.handed;
    if (n.handed == 0 || n.first_child < 0 || !load(node, n.handed)) return false;
    for (int32_t c = n.first_child; c >= 0; c = nodes_[c].next) {
      const Offer offered = offer(c);
      const double share = offered.bound > 0 ? std::min(1.0, offered.mass / offered.bound) : 0;
      nodes_[c].handed = share >= kLeastHanded ? share : 0;
      fail(c, offered);
    }
    n.mass = mass_;
    n.rho = rho_;
    return true;
  }

  void emit(int64_t end, int32_t extra) const {
    const int64_t row = b_ * p_.max_path, N = p_.num_logprobs;
    int64_t depth = 0;
    for (int64_t node = end; node >= 0; node = parents_[node]) ++depth;
    p_.path_len[b_] = int32_t(depth);
    const int64_t rest = p_.max_path - depth, tail = row + depth;
    std::fill_n(p_.path + tail, rest, -1);
    std::fill_n(p_.emitted + tail, rest, -1);
    std::fill_n(p_.logprobs + tail, rest, 0.0f);
    std::fill_n(p_.top_tokens + tail * N, rest * N, -1);
    std::fill_n(p_.top_logprobs + tail * N, rest * N, 0.0f);
    for (int64_t node = end; node >= 0; extra = tokens_[node], node = parents_[node]) {
      const int64_t at = row + --depth;
      p_.path[at] = int32_t(node);
      report(p_.logits + (begin_ + node) * p_.logits_stride_t, p_.V, extra, p_.with_logprobs, N,
             {p_.emitted + at, p_.logprobs + at, p_.top_tokens + at * N, p_.top_logprobs + at * N});
    }
  }

  const VerifyDrawnParams& p_;
  const int64_t b_, begin_, count_, size_;
  const int32_t *const tokens_, *const parents_, *const drawn_;
  const Uniform uniform_;
  double *target_, *draft_;  // weights [size_] of the loaded node's laws
  Node* nodes_;
  int64_t node_ = 0;
  double alpha_ = 0, a_ = 0, mass_ = 0, rho_ = 0;
  bool has_draft_ = false;
};

}  // namespace

void verify_drawn(const VerifyDrawnParams& p) {
  parallel_for(p.B, [&](int64_t b) { Walk(p, b).run(); });
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(verify_drawn, VerifyDrawnParams)
