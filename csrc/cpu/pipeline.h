// SPDX-License-Identifier: Apache-2.0
// One row of logits to one token: the processed law and the shared-noise pick of pyspec/spec/pipeline.py, bit
// for bit. Included after cpu/kernel.h.
#pragma once

#include "cpu/logits.h"

namespace pyspec::PYSPEC_ISA {

struct Pick {
  int32_t* token;
  float* logprob;
  int32_t* top_tokens;  // [num_logprobs]
  float* top_logprobs;  // [num_logprobs]
};

// Draws from a row of which a filter keeps the tokens whose e is nearest to `centre` while the weight of
// those before them is below `limit`: typical-p, or top-p with a centre of 0, where `before` of equal ones
// goes by id. What is drawn from all is the answer if the filter keeps it, which the weight of the nearer
// ones says without sorting them, whatever the order of that sum; and if not, all that is as far is dropped
// and one draws again. -1 where rounding or equal tokens leave it open: then the filter has to be applied in
// full.
inline int32_t draw_nearest(Row& row, const Noise& noise, double inv_t, double centre, double limit,
                            bool equal_in_order) {
  const double scale = kLog2e * inv_t, doubt = limit * double(row.vocab() + 64) * 0x1p-50;
  for (;;) {
    const int32_t token = row.draw(noise, inv_t);
    const double e = row.centred_at(token) * scale, radius = std::abs(e - centre);
    const Row::Masses mass = row.masses(scale, centre, radius);
    const double others = equal_in_order ? mass.same - exp2_negative<double, uint64_t>(e) : 0;
    if (mass.nearer + others < limit - doubt) return token;
    if (mass.nearer <= limit + doubt) return -1;  // also if nothing is nearer, so that something is left
    row.cut_nearer(scale, centre, radius);
  }
}

// The token of a law with noise.
inline int32_t draw(Row& row, const Law& law, const Noise& noise, double inv_t) {
  row.cut_top_k(law.top_k);
  int32_t token = -1;
  if (law.typical_p < 1) {
    if (law.top_p < 1) row.cut_top_p(law.top_p, inv_t, row.sum_exp2(kLog2e * inv_t));
    row.cut_min_p(law.min_p, inv_t);
    const Row::Sums sum = row.sums<true>(kLog2e * inv_t);
    token = draw_nearest(row, noise, inv_t, sum.mean(), double(law.typical_p) * sum.weight, false);
    if (token < 0) row.cut_typical_p(law.typical_p, inv_t, sum.mean(), sum.weight);
  } else if (law.top_p < 1) {
    const double total = row.sum_exp2(kLog2e * inv_t);
    row.cut_min_p(law.min_p, inv_t);  // keeps a head too, so that what is before its tokens stays
    token = draw_nearest(row, noise, inv_t, 0, double(law.top_p) * total, true);
    if (token < 0) row.cut_top_p(law.top_p, inv_t, total);
  } else {
    row.cut_min_p(law.min_p, inv_t);
  }
  return token < 0 ? row.draw(noise, inv_t) : token;
}

// The most likely tokens of a raw row and their logprobs; returns the log of the sum of its exponentials.
inline double most_likely(Row& raw, int64_t num_logprobs, const Pick& out) {
  const double log_sum = raw.dead() ? 0 : log_positive(raw.sum_exp2(kLog2e));
  if (num_logprobs) raw.select(num_logprobs, Row::kLowest);
  for (int64_t i = 0; i < num_logprobs; ++i) {
    out.top_tokens[i] = raw.key_id(i);
    out.top_logprobs[i] = float(raw.key_centred(i) - log_sum);
  }
  return log_sum;
}

// The logprob of *out.token, 0 if not wanted; NaN, for the most likely tokens too, where the raw row or the
// row picked from has no law.
inline void finish(const Row& raw, const float* logits, double log_sum, bool with_logprobs, bool has_law,
                   int64_t num_logprobs, const Pick& out) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  *out.logprob = !has_law        ? kNaN
                 : with_logprobs ? float(raw.centred_raw(logits[*out.token]) - log_sum)
                                 : 0.0f;
  if (!raw.dead() && has_law) return;
  for (int64_t i = 0; i < num_logprobs; ++i) {
    out.top_tokens[i] = int32_t(i);
    out.top_logprobs[i] = kNaN;
  }
}

// Picks from the edited row if there is one; logprobs are those of the raw row, 0 if not wanted.
inline void pick(const float* logits, const float* edited, int64_t vocab, int64_t position, const Law& law,
                 bool with_logprobs, int64_t num_logprobs, const Pick& out) {
  Row row(edited && !with_logprobs ? edited : logits, vocab);
  const Row raw = row;
  const double log_sum = with_logprobs ? most_likely(row, num_logprobs, out) : 0;
  if (edited && with_logprobs) row = Row(edited, vocab);  // in the memory of the raw row
  if (row.dead()) {
    *out.token = 0;
  } else if (law.temperature < kGreedyBelow) {
    *out.token = row.first();
  } else {
    const double inv_t = 1.0 / double(law.temperature);
    *out.token = draw(row, law, Noise(law.seed, law.stream, position), inv_t);
  }
  finish(raw, logits, log_sum, with_logprobs, !row.dead(), num_logprobs, out);
}

// What pick reports of a token that was picked otherwise; below 0: its row has no law.
inline void report(const float* logits, int64_t vocab, int32_t token, bool with_logprobs,
                   int64_t num_logprobs, const Pick& out) {
  *out.token = std::max(token, 0);
  if (!with_logprobs) {
    *out.logprob = token < 0 ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
    return;
  }
  Row row(logits, vocab);
  const Row raw = row;
  finish(raw, logits, most_likely(row, num_logprobs, out), true, token >= 0, num_logprobs, out);
}

}  // namespace pyspec::PYSPEC_ISA
