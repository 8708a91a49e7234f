// SPDX-License-Identifier: Apache-2.0
// One row of logits to one token by one block: the processed law and the shared-noise pick of
// pyspec/spec/pipeline.py, bit for bit. Used by sample, verify_tree and verify_drawn.
//
// A block reads its row from memory once, and again from L2 (1 MB at V = 262144) for every further pass.
// Passes: the largest logit; the sum for the logprob; one for top-k, top-p's head and the most likely tokens
// together; top-p's sum where there is no top-k; 18 for typical-p; the draw, unless the tokens that are left
// stand in a list. An edited row has the first of these to itself.
// The sums are chains of V / 32 float64 additions, about 8 cycles each: 40 us at V = 262144, hidden behind
// the exponentials of the other warps.
#pragma once

#include <cstdint>

#include "cuda/typical.cuh"

namespace pyspec::cuda {

struct Law {
  float temperature, top_p, min_p, typical_p;
  int32_t top_k, stream;
  int64_t seed;

  __device__ bool filters_k(int64_t vocab) const { return top_k > 0 && top_k < vocab; }
  __device__ bool lists_k(int64_t vocab) const { return filters_k(vocab) && top_k <= kMaxSelected; }
};

struct Pick {
  int32_t* token;
  float* logprob;
  int32_t* top_tokens;  // [num_logprobs]
  float* top_logprobs;  // [num_logprobs]
};

// The largest d + noise of the tokens considered; ties to the lowest id.
class Draw {
 public:
  // Begins with the likeliest token in every thread, which typical-p alone can have dropped: what cannot beat
  // it is passed over.
  __device__ Draw(const Row& row, const Noise& noise, double inv_t, double floor, const Interval& interval)
      : noise_(noise),
        inv_t_(inv_t),
        floor_(floor),
        interval_(interval),
        row_(row),
        score_(interval.keeps(0) ? gumbel(noise.word(row.argmax())) : -double(kInfinity)),
        id_(row.argmax()) {}

  __device__ void consider(float z, int64_t id, uint32_t word) {
    const double d = row_.centred(z) * inv_t_;
    if (d < floor_ || d + gumbel_bound(word) < score_ || !interval_.keeps(row_.centred(z))) return;
    const double score = d + gumbel(word);
    if (score > score_ || (score == score_ && id < id_)) {
      score_ = score;
      id_ = id;
    }
  }

  // All tokens up to the key `last`.
  __device__ void from_row(uint64_t last) {
    Ahead<Row> ahead(row_);
    for (int64_t i = 4 * int64_t(threadIdx.x); i < row_.vocab(); i += kChunk) {
      const float4 z = ahead.take(i);
      const float highest = fmaxf(fmaxf(z.x, z.y), fmaxf(z.z, z.w));
      if (row_.centred(highest) * inv_t_ + kMaxGumbel < score_) continue;
      const Noise::Words words = noise_.words(i / 4);
      const float values[4] = {z.x, z.y, z.z, z.w};
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (make_key(values[k], i + k) <= last) consider(values[k], i + k, words.w[k]);
    }
  }

  __device__ void from_list(const uint64_t* keys, int count) {
    for (int i = int(threadIdx.x); i < count; i += kThreads)
      consider(key_value(keys[i]), key_id(keys[i]), noise_.word(key_id(keys[i])));
  }

  // The winner of the block, to every thread.
  __device__ int32_t winner(Scratch& s) const {
    const auto bits = uint64_t(__double_as_longlong(score_));
    const uint64_t descending = bits >> 63 ? bits : ~bits & ~(uint64_t(1) << 63);
    const bool first = block_min(descending, s) == descending;
    if (PYSPEC_PLANTED(2)) return int32_t(~block_min(first ? ~uint64_t(id_) : kNoKey, s));
    return int32_t(block_min(first ? uint64_t(id_) : kNoKey, s));
  }

 private:
  const Noise& noise_;
  double inv_t_, floor_;
  const Interval& interval_;
  const Row& row_;
  double score_;
  int64_t id_;
};

// What is left of a row: keys up to kept.last, d of at least floor, e in the interval.
struct Survivors {
  Kept kept;
  double inv_t, floor;
  Interval interval;

  __device__ bool has(const Row& row, float z, int64_t id) const {
    return z > -kInfinity && make_key(z, id) <= kept.last && row.centred(z) * inv_t >= floor &&
           interval.keeps(row.centred(z));
  }
};

// What the filters of a law keep. lists.keys[0 .. found) are the first tokens in order, at least `head` if
// there are so many; raw_sum is the sum of 2^((z - max) log2(e)), 0: unknown.
__device__ inline Survivors filter(const Row& row, const Law& law, int head, int found, double raw_sum,
                                   Scratch& s) {
  const double inv_t = 1.0 / double(law.temperature), scale = kLog2e * inv_t;
  const bool short_k = law.lists_k(row.vocab());
  int listed = head < found ? head : found;
  Kept kept;
  if (short_k) {
    kept = {s.lists.keys[listed - 1], listed};
  } else if (law.filters_k(row.vocab())) {
    kept.last = descend({row, 0, kNoKey}, law.top_k, s).last;  // weights 1: a count
    if (law.top_p < 1) listed = select_first(row, head, s);    // the descent wrote over the list
  }
  if (law.top_p < 1) {
    const Weights weights{row, scale, kept.last};
    const bool same = raw_sum > 0 && scale == kLog2e && kept.last == kNoKey;
    const double total = same      ? raw_sum
                         : short_k ? listed_sum(weights, listed, s)
                                   : lane_sum(row, s, weights);
    kept = top_p_kept(weights, law.top_p, total, listed, short_k || listed < head, s);
  }
  const double floor = law.min_p >= 0x1p-126f ? log_positive(law.min_p) : -double(kInfinity);
  Interval interval;
  if (law.typical_p < 1) {
    const double lowest = PYSPEC_PLANTED(8) ? -double(kInfinity) : floor;
    interval = typical({row, inv_t, scale, lowest, kept.last}, law.typical_p, s);
    kept.listed = 0;  // the list has been written over
  }
  return {kept, inv_t, floor, interval};
}

// How many of the first tokens in order the filters want to know: top-k's, or the head in which top-p usually
// ends.
__device__ inline int head_of(const Law& law, int64_t vocab) {
  return law.lists_k(vocab) ? law.top_k : law.top_p < 1 ? kHead : 0;
}

// The token of a law with noise; arguments as of filter.
__device__ inline int32_t draw(const Row& row, const Law& law, int64_t position, int head, int found,
                               double raw_sum, Scratch& s) {
  const Survivors left = filter(row, law, head, found, raw_sum, s);
  const Noise noise(law.seed, law.stream, position);
  Draw tokens(row, noise, left.inv_t, left.floor, left.interval);
  if (left.kept.listed > 0) {
    tokens.from_list(s.lists.keys, left.kept.listed);
  } else {
    tokens.from_row(left.kept.last);
  }
  return tokens.winner(s);
}

// The first tokens of a row, which stand in the lists, with their logprobs.
__device__ inline void report_first(const Row& row, double log_sum, int64_t num_logprobs, const Pick& out,
                                    const Scratch& s) {
  for (int64_t i = threadIdx.x; i < num_logprobs; i += kThreads) {
    const uint64_t key = s.lists.keys[i];
    out.top_tokens[i] = key_id(key);
    out.top_logprobs[i] = float(row.centred(key_value(key)) - log_sum);
  }
}

// What a pick reports where a row has no law: of the edited and the raw one.
__device__ inline void report_nothing(int32_t token, int64_t num_logprobs, const Pick& out) {
  const float nan = __uint_as_float(0x7fc00000u);
  if (threadIdx.x == 0) *out.token = token;
  if (threadIdx.x == 0) *out.logprob = nan;
  for (int64_t i = threadIdx.x; i < num_logprobs; i += kThreads) {
    out.top_tokens[i] = int32_t(i);
    out.top_logprobs[i] = nan;
  }
}

// A token picked elsewhere with its logprob in the row, and the row's first tokens.
__device__ inline void report_raw(const float* logits, int64_t vocab, int32_t token, int64_t num_logprobs,
                                  const Pick& out, Scratch& s) {
  const Row raw(logits, vocab, s);
  if (raw.dead()) return report_nothing(token, num_logprobs, out);
  const double log_sum = log_positive(lane_sum(raw, s, Weights{raw, kLog2e, kNoKey}));
  __syncthreads();
  if (num_logprobs > 0) select_first(raw, int(num_logprobs), s);
  report_first(raw, log_sum, num_logprobs, out, s);
  if (threadIdx.x == 0) *out.token = token;
  if (threadIdx.x == 0) *out.logprob = float(raw.centred(raw.value(token)) - log_sum);
}

// The pick from a row, or from `edited` if it is not null, at an absolute position. Every thread returns the
// token; outputs are written.
__device__ inline int32_t pick(const float* logits, const float* edited, int64_t vocab, int64_t position,
                               const Law& law, bool with_logprobs, int64_t num_logprobs, const Pick& out,
                               Scratch& s) {
  const bool reports = with_logprobs && !edited;  // of the row picked from
  const int64_t reported = reports ? num_logprobs : 0;
  const Row row(edited && !PYSPEC_PLANTED(10) ? edited : logits, vocab, s);
  if (row.dead()) {
    report_nothing(0, num_logprobs, out);
    return 0;
  }
  const double raw_sum = reports ? lane_sum(row, s, Weights{row, kLog2e, kNoKey}) : 0;
  const double log_sum = reports ? log_positive(raw_sum) : 0;
  // One pass gives the most likely tokens, top-k's and the head in which top-p usually ends.
  const bool greedy = law.temperature < kGreedyBelow;
  const int head = greedy ? 0 : head_of(law, vocab);
  const int wanted = head > reported ? head : int(reported);
  const int found = wanted > 0 ? select_first(row, wanted, s) : 0;
  report_first(row, log_sum, reported, out, s);
  const int32_t token = greedy ? row.argmax() : draw(row, law, position, head, found, raw_sum, s);
  if (with_logprobs && edited) {
    __syncthreads();  // the draw is done with the lists
    report_raw(logits, vocab, token, num_logprobs, out, s);
    return token;
  }
  if (threadIdx.x == 0) *out.token = token;
  if (threadIdx.x == 0) *out.logprob = reports ? float(row.centred(row.value(token)) - log_sum) : 0.0f;
  return token;
}

}  // namespace pyspec::cuda
