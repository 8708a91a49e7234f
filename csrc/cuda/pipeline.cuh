// SPDX-License-Identifier: Apache-2.0
// One row of logits to one token by one block: the processed law and the shared-noise pick of
// pyspec/spec/pipeline.py, bit for bit. Used by sample and verify_tree.
//
// A block reads its row from memory once, and again from L2 (1 MB at V = 262144) for every further pass.
// Passes: the largest logit; the sum for the logprob; one for top-k, top-p's head and the most likely tokens
// together; top-p's sum where there is no top-k; the draw, unless the tokens that are left stand in a list.
// The sums are chains of V / 32 float64 additions, about 8 cycles each: 40 us at V = 262144, hidden behind
// the exponentials of the other warps.
#pragma once

#include <cstdint>

#include "cuda/filters.cuh"

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
  // Begins with the likeliest token in every thread: what cannot beat it is passed over.
  __device__ Draw(const Row& row, const Noise& noise, double inv_t, double floor)
      : noise_(noise),
        inv_t_(inv_t),
        floor_(floor),
        row_(row),
        score_(gumbel(noise.word(row.argmax()))),
        id_(row.argmax()) {}

  __device__ void consider(float z, int64_t id, uint32_t word) {
    const double d = row_.centred(z) * inv_t_;
    if (d < floor_ || d + gumbel_bound(word) < score_) return;
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
  const Row& row_;
  double score_;
  int64_t id_;
};

// The token of a law with noise. lists.keys[0 .. found) are the first tokens in order, at least `head` if
// there are so many; raw_sum is the sum of 2^((z - max) log2(e)), 0: unknown.
__device__ inline int32_t draw(const Row& row, const Law& law, int64_t position, int head, int found,
                               double raw_sum, Scratch& s) {
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
  const Noise noise(law.seed, law.stream, position);
  Draw tokens(row, noise, inv_t, law.min_p >= 0x1p-126f ? log_positive(law.min_p) : -double(kInfinity));
  if (kept.listed > 0) {
    tokens.from_list(s.lists.keys, kept.listed);
  } else {
    tokens.from_row(kept.last);
  }
  return tokens.winner(s);
}

// The pick from a row at an absolute position. Every thread returns the token; outputs are written.
// typical-p is refused before a launch where its values can be read; where they could not be, a row that asks
// for it has no law.
__device__ inline int32_t pick(const float* logits, int64_t vocab, int64_t position, const Law& law,
                               bool with_logprobs, int64_t num_logprobs, const Pick& out, Scratch& s) {
  const Row row(logits, vocab, s);
  const int t = int(threadIdx.x);
  if (row.dead() || law.typical_p < 1) {
    const float nan = __uint_as_float(0x7fc00000u);
    if (t == 0) *out.token = 0;
    if (t == 0) *out.logprob = nan;
    for (int64_t i = t; i < num_logprobs; i += kThreads) {
      out.top_tokens[i] = int32_t(i);
      out.top_logprobs[i] = nan;
    }
    return 0;
  }
  const double raw_sum = with_logprobs ? lane_sum(row, s, Weights{row, kLog2e, kNoKey}) : 0;
  const double log_sum = with_logprobs ? log_positive(raw_sum) : 0;
  // One pass gives the most likely tokens, top-k's and the head in which top-p usually ends.
  const bool greedy = law.temperature < kGreedyBelow;
  const int head = greedy ? 0 : law.lists_k(vocab) ? law.top_k : law.top_p < 1 ? kHead : 0;
  const int wanted = head > num_logprobs ? head : int(num_logprobs);
  const int found = wanted > 0 ? select_first(row, wanted, s) : 0;
  for (int64_t i = t; i < num_logprobs; i += kThreads) {
    const uint64_t key = s.lists.keys[i];
    out.top_tokens[i] = key_id(key);
    out.top_logprobs[i] = float(row.centred(key_value(key)) - log_sum);
  }
  const int32_t token = greedy ? row.argmax() : draw(row, law, position, head, found, raw_sum, s);
  if (t == 0) {
    *out.token = token;
    *out.logprob = with_logprobs ? float(row.centred(row.value(token)) - log_sum) : 0.0f;
  }
  return token;
}

}  // namespace pyspec::cuda
