// SPDX-License-Identifier: Apache-2.0
// CPU edit_logits. One item is one row: a copy, masked on the way, and then a few values changed in place.
// Penalties leave out what is masked, and no bias makes anything else of -inf: a mask first and last is the
// same.
#include "pyspec/edit_logits.h"

#include "cpu/kernel.h"

namespace pyspec::PYSPEC_ISA {
namespace {

constexpr float kBanned = -std::numeric_limits<float>::infinity();

void copy_masked(const float* from, const uint32_t* mask, float* to, int64_t count) {
  for (; count >= 32; count -= 32, from += 32, to += 32) {
    const uint32_t bits = *mask++;
    for (int i = 0; i < 32; ++i) to[i] = bits >> i & 1 ? from[i] : kBanned;
  }
  for (int i = 0; i < count; ++i) to[i] = *mask >> i & 1 ? from[i] : kBanned;
}

// Denormals count as 0 without the help of the processor's flags.
inline double widened(float x) { return std::fabs(x) < 0x1p-126f ? 0.0 : double(x); }
inline float rounded(double x) { return std::fabs(x) < 0x1p-126 ? 0.0f : float(x); }

struct Penalties {
  double repetition, presence, frequency;

  bool any() const { return repetition != 1 || presence != 0 || frequency != 0; }

  // What the logit of a token that is n times in the output becomes.
  float operator()(float logit, int64_t n) const {
    double y = widened(logit);
    if (repetition != 1) y = y > 0 ? y / repetition : y * repetition;
    if (n > 0 && frequency != 0) y = y - frequency * double(n);
    if (n > 0 && presence != 0) y = y - presence;
    return rounded(y);
  }
};

// The history, then each token of the path from `node` up to the root's child, whose count is the history's
// and the path's. mask: of this row, null where everything is allowed.
void penalise(const EditLogitsParams& p, int64_t b, int64_t node, const uint32_t* mask, const float* logits,
              float* out) {
  const Penalties penalties{p.repetition[b], widened(p.presence[b]), widened(p.frequency[b])};
  if (!penalties.any()) return;
  const int32_t *history = p.history + p.cu_history[b], *end = p.history + p.cu_history[b + 1];
  const int32_t* count = p.history_count + p.cu_history[b];
  const auto edit = [&](int32_t x, int64_t n) {
    if (!mask || mask[x / 32] >> x % 32 & 1) out[x] = penalties(logits[x], n);
  };
  for (const int32_t* x = history; x < end; ++x) edit(*x, count[x - history]);
  const int32_t *tokens = p.tokens + p.cu_t[b], *parents = p.parents + p.cu_t[b];
  for (int64_t i = node; i > 0; i = parents[i]) {
    const int32_t* known = std::find(history, end, tokens[i]);
    int64_t n = known < end ? count[known - history] : 0;
    for (int64_t j = node; j > 0; j = parents[j]) n += tokens[j] == tokens[i];
    edit(tokens[i], n);
  }
}

void edit_row(const EditLogitsParams& p, int64_t t) {
  const int64_t b = std::upper_bound(p.cu_t, p.cu_t + p.B + 1, int32_t(t)) - p.cu_t - 1;
  const float* logits = p.logits + t * p.logits_stride_t;
  float* out = p.out + t * p.V;
  const uint32_t* mask = nullptr;
  if (p.mask_row[t] < 0) {
    std::memcpy(out, logits, size_t(p.V) * sizeof *out);
  } else {
    mask = reinterpret_cast<const uint32_t*>(p.mask + p.mask_row[t] * ((p.V + 31) / 32));
    copy_masked(logits, mask, out, p.V);
  }
  penalise(p, b, t - p.cu_t[b], mask, logits, out);
  for (int64_t j = p.cu_bias[b]; j < p.cu_bias[b + 1]; ++j) {
    float& y = out[p.bias_token[j]];
    y = rounded(widened(y) + widened(p.bias[j]));
  }
}

}  // namespace

void edit_logits(const EditLogitsParams& p) {
  parallel_for(p.T, [&](int64_t t) { edit_row(p, t); });
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(edit_logits, EditLogitsParams)
