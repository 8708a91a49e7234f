// SPDX-License-Identifier: Apache-2.0
// CPU draw_children. One item is one row: its weights are computed once, and every draw is a pass of
// additions.
#include "pyspec/draw_children.h"

#include "cpu/categorical.h"
#include "cpu/kernel.h"

namespace pyspec::PYSPEC_ISA {
namespace {

void draw(const DrawChildrenParams& p, int64_t t) {
  const float* logits = p.logits + t * p.logits_stride_t;
  int32_t* token = p.token + t * p.width;
  float* log_q = p.log_q + t * p.width;
  std::fill_n(token, p.width, -1);
  std::fill_n(log_q, p.width, Row::kLowest);
  const int64_t size = Row::padded(p.V), count = p.count[t];
  auto* weight = static_cast<double*>(thread_scratch(size_t(size) * sizeof(double), 1));
  const Law law{.temperature = p.temperature[t], .top_p = 1, .min_p = 0, .typical_p = 1};
  Row row(logits, p.V);
  if (count == 0 || !law_weights(row, p.V, law, weight)) return;
  const double log_sum = log_positive(lane_sum(weight, size));
  int64_t fixed = 0;  // the last children, which are not drawn
  if (p.rule == DrawRule::kHybrid && count > 1) {
    fixed = count - 1;
    const int64_t found = row.select(std::min(fixed, p.V), Row::kFinite);
    for (int64_t i = 0; i < std::min(fixed, found); ++i) {
      const int32_t x = row.key_id(i);
      if (weight[x] == 0) break;
      token[1 + i] = x;
      weight[x] = 0;
    }
  }
  const Uniform uniform{p.seed[t], p.stream[t], p.step[t]};
  for (int64_t j = 0; j < count - fixed; ++j) {
    const int32_t x = categorical(weight, size, uniform(p.node[t], Purpose::kDraft, j));
    if (x < 0) break;
    token[j] = x;
    if (p.rule != DrawRule::kIid) weight[x] = 0;
  }
  const double inv_t = law.temperature < kGreedyBelow ? 0 : 1.0 / double(law.temperature);
  for (int64_t j = 0; j < count; ++j)
    if (token[j] >= 0) log_q[j] = float(row.centred_raw(logits[token[j]]) * inv_t - log_sum);
}

}  // namespace

void draw_children(const DrawChildrenParams& p) {
  parallel_for(p.T, [&](int64_t t) { draw(p, t); });
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(draw_children, DrawChildrenParams)
