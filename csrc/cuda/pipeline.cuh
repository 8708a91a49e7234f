// SPDX-License-Identifier: Apache-2.0
// One row of logits to one token by one block: the processed law and the shared-noise pick of
// pyspec/spec/pipeline.py, bit for bit. Used by sample and verify_tree; build_tree uses the row.
//
// A block reads its row from memory once, and again from L2 (1 MB at V = 262144) for every further pass: the
// sum for the logprob, one pass for top-k, top-p's head and the most likely tokens together, top-p's sum, and
// the draw. Sums are chains of V / 32 float64 additions, about 8 cycles each: 40 us at V = 262144, which
// hides behind the exponentials.
#pragma once

#include <cstdint>

#include "cuda/noise.cuh"
#include "cuda/row.cuh"
#include "cuda/select.cuh"

namespace pyspec::cuda {

struct Law {
  float temperature, top_p, min_p;
  int32_t top_k, stream;
  int64_t seed;
};

struct Pick {
  int32_t* token;
  float* logprob;       // null: not wanted
  int32_t* top_tokens;  // [num_logprobs]
  float* top_logprobs;  // [num_logprobs]
};

constexpr float kInfinity = __builtin_huge_valf();
constexpr double kGreedyBelow = 0x1p-16;
constexpr int kHead = 384;  // tokens in which top-p usually ends

// Ascending keys are the order: value descending, then id ascending.
__device__ inline uint64_t make_key(float value, int64_t id) {
  const uint32_t bits = __float_as_uint(value), descending = bits >> 31 ? bits : ~bits & 0x7fffffffu;
  return uint64_t(descending) << 32 | uint64_t(id);
}
__device__ inline float key_value(uint64_t key) {
  const auto descending = uint32_t(key >> 32);
  return __uint_as_float(descending >> 31 ? descending : ~descending & 0x7fffffffu);
}
__device__ inline int32_t key_id(uint64_t key) { return int32_t(uint32_t(key)); }

// A cleaned row: NaN as -inf, tiny as 0, and +inf as all that there is.
class Row {
 public:
  __device__ Row(const float* logits, int64_t vocab, Scratch& s)
      : logits_(logits), V_(vocab), vector_(reinterpret_cast<uintptr_t>(logits) % 16 == 0) {
    float best = -kInfinity;
    int64_t id = 4 * int64_t(threadIdx.x);
    const bool any = id < V_;
#pragma unroll 4
    for (int64_t i = 4 * int64_t(threadIdx.x); i < V_; i += kChunk) {
      const float4 z = quad(i);
      const float values[4] = {z.x, z.y, z.z, z.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (values[k] > best) {
          best = values[k];
          id = i + k;
        }
      }
    }
    const uint64_t first = block_min(any ? make_key(best, id) : kNoKey, s);
    argmax_ = key_id(first);
    max_ = key_value(first);
    if (max_ == kInfinity) {
      infinite_ = true;
      max_ = 0;
    }
    own_ = any ? make_key(infinite_ ? (best == kInfinity ? 0.0f : -kInfinity) : best, id) : kNoKey;
  }

  __device__ int64_t vocab() const { return V_; }
  __device__ bool dead() const { return max_ == -kInfinity; }
  __device__ int32_t argmax() const { return argmax_; }
  __device__ uint64_t own() const {
    return own_;
  }  // the first key of this thread's tokens; kNoKey: it has none
  __device__ double centred(float value) const { return double(value) - double(max_); }
  __device__ float value(int64_t id) const { return clean(logits_[id]); }

  // Tokens i .. i + 3, -inf beyond the vocabulary.
  __device__ float4 quad(int64_t i) const {
    const int64_t left = V_ - i;
    if (left <= 0) return {-kInfinity, -kInfinity, -kInfinity, -kInfinity};
    if (vector_ && left >= 4) {
      const float4 z = load4<true>(logits_ + i, left);
      return {clean(z.x), clean(z.y), clean(z.z), clean(z.w)};
    }
    const float4 z = load4<false>(logits_ + i, left);
    return {clean(z.x), left > 1 ? clean(z.y) : -kInfinity, left > 2 ? clean(z.z) : -kInfinity,
            left > 3 ? clean(z.w) : -kInfinity};
  }

 private:
  __device__ float clean(float x) const {
    if (infinite_) return x == kInfinity ? 0.0f : -kInfinity;
    x = fabsf(x) < 0x1p-126f ? 0.0f : x;
    return x == x ? x : -kInfinity;
  }

  const float* logits_;
  int64_t V_;
  uint64_t own_;
  float max_;
  int32_t argmax_;
  bool vector_, infinite_ = false;
};

// The weights 2^((z - max) * scale) of the tokens up to the key `last`, 0 for the others; 0 for -inf too,
// where the specification's 2^-1000 is lost beside the 1 of the best token.
struct Weights {
  const Row& row;
  double scale;
  uint64_t last;

  __device__ double of(float z) const { return exp2_negative(row.centred(z) * scale); }
  __device__ double of(float z, int64_t id) const {
    return z > -kInfinity && make_key(z, id) <= last ? of(z) : 0.0;
  }
  __device__ void operator()(int64_t i, float4 z, double (&w)[4]) const {
    w[0] = of(z.x, i);
    w[1] = of(z.y, i + 1);
    w[2] = of(z.z, i + 2);
    w[3] = of(z.w, i + 3);
  }
};

// The first n keys of the row in order.
__device__ inline int select_first(const Row& row, int n, Scratch& s) {
  const uint64_t beyond = beyond_first(row.own(), n, s);
  Ahead<Row> ahead(row);
  return select(row.vocab(), n, beyond, s, [&](int64_t i, uint64_t, uint64_t (&key)[4]) {
    const float4 z = ahead.take(i);
    const float values[4] = {z.x, z.y, z.z, z.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) key[k] = i + k < row.vocab() ? make_key(values[k], i + k) : kNoKey;
  });
}

// The first n keys of finite values in order, of those beyond `after` and up to `last`.
__device__ inline int select_next(const Row& row, int n, uint64_t after, uint64_t last, Scratch& s) {
  Ahead<Row> ahead(row);
  return select(row.vocab(), n, kNoKey, s, [&](int64_t i, uint64_t, uint64_t (&key)[4]) {
    const float4 z = ahead.take(i);
    const float values[4] = {z.x, z.y, z.z, z.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const uint64_t token = make_key(values[k], i + k);
      key[k] = values[k] > -kInfinity && token > after && token <= last ? token : kNoKey;
    }
  });
}

// Where the weights of the tokens in order, added up in no particular order, reach a target.
struct Cut {
  uint64_t last;       // the first key with which they do; kNoKey: they do not
  double before, own;  // the weight of all keys before it, and its own
};

// Descends the digits of the keys, four bits at a time: a pass adds up the weights of each digit's keys, all
// of whose higher digits are settled. 8 passes settle the value, up to 5 more the id where tokens are tied.
__device__ inline Cut descend(const Weights& weights, double target, Scratch& s) {
  const Row& row = weights.row;
  const int t = int(threadIdx.x), warp = t / kWarp;
  int id_bits = 0;
  while ((row.vocab() - 1) >> id_bits) id_bits += 4;
  uint64_t first = 0;  // the smallest key with the settled digits
  double before = 0, own = 0;
  for (int shift = 60; shift >= 0; shift = shift == 32 ? id_bits - 4 : shift - 4) {
    __syncthreads();  // the last sums, and what lay where the bins are, have been read
    for (int bin = 0; bin < kBins; ++bin) s.bins[bin][t] = 0;
    Ahead<Row> ahead(row);
    for (int64_t i = 4 * t; i < row.vocab(); i += kChunk) {
      const float4 z = ahead.take(i);
      const float values[4] = {z.x, z.y, z.z, z.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const uint64_t key = make_key(values[k], i + k);
        if ((key ^ first) >> shift >> 4 == 0)
          s.bins[key >> shift & (kBins - 1)][t] += weights.of(values[k], i + k);
      }
    }
    __syncthreads();
    double sum = 0;
    for (int column = t % kWarp; column < kThreads; column += kWarp) sum += s.bins[warp][column];
    for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    if (t % kWarp == 0) s.sums[warp] = sum;
    __syncthreads();
    int digit = 0;
    while (digit < kBins && before + s.sums[digit] < target) before += s.sums[digit++];
    if (digit == kBins) return {kNoKey, before, own};
    own = s.sums[digit];
    first |= uint64_t(digit) << shift;
    if (shift == 32 && own == weights.of(key_value(first)))
      return {first | 0xffffffffu, before, own};  // no tie
  }
  return {first, before, own};
}

// Adds the weights of lists.keys[0 .. found) to mass one after another, as the specification does; returns
// the first with which it reaches the limit, `found` if it does not.
__device__ inline int add_in_order(const Weights& weights, int found, double limit, double& mass,
                                   Scratch& s) {
  for (int i = int(threadIdx.x); i < found; i += kThreads)
    s.lists.weights[i] = weights.of(key_value(s.lists.keys[i]));
  __syncthreads();
  if (threadIdx.x == 0) {
    int i = 0;
    for (; i < found; ++i) {
      mass += s.lists.weights[i];
      if (mass >= limit) break;
    }
    s.total = mass;
    s.count = i;
  }
  __syncthreads();
  mass = s.total;
  const int reached = s.count;
  __syncthreads();  // total and count are written again
  return reached;
}

// The last key that top-p keeps of those up to weights.last. lists.keys[0 .. found) are the first in order,
// all of them if `complete`.
__device__ inline uint64_t top_p_last(const Weights& weights, double top_p, double total, int found,
                                      bool complete, Scratch& s) {
  const Row& row = weights.row;
  const double limit = top_p * total;
  double mass = 0;
  int reached = add_in_order(weights, found, limit, mass, s);
  if (reached < found) return s.lists.keys[reached];
  uint64_t after = s.lists.keys[found - 1];
  if (complete || key_value(after) == -kInfinity) return weights.last;
  // A head of many tokens: sums in another order find the cut, unless it is so close that rounding may
  // decide. Each of V additions errs by at most 2^-53 of the total, here and in the specification: together V
  // 2^-52.
  const double slack = PYSPEC_PLANTED(6) ? 0 : double(row.vocab()) * 0x1p-51 * total;
  const Cut cut = descend(weights, limit, s);
  if (cut.last != kNoKey && cut.before + slack < limit && cut.before + cut.own - slack >= limit)
    return cut.last;
  for (;;) {  // in order to the end, 1024 tokens a pass
    found = select_next(row, kMaxSelected, after, weights.last, s);
    if (found == 0) return weights.last;
    reached = add_in_order(weights, found, limit, mass, s);
    if (reached < found) return s.lists.keys[reached];
    after = s.lists.keys[found - 1];
  }
}

// argmax of d + noise over the tokens up to the key `last` with d >= floor; ties to the lowest id.
__device__ inline int32_t draw(const Row& row, const Noise& noise, double inv_t, double floor, uint64_t last,
                               Scratch& s) {
  int64_t winner = row.argmax();
  double best = gumbel(noise.word(winner));  // every thread starts with the likeliest token's score
  Ahead<Row> ahead(row);
  for (int64_t i = 4 * int64_t(threadIdx.x); i < row.vocab(); i += kChunk) {
    const float4 z = ahead.take(i);
    const float highest = fmaxf(fmaxf(z.x, z.y), fmaxf(z.z, z.w));
    if (row.centred(highest) * inv_t + kMaxGumbel < best) continue;
    const Noise::Words words = noise.words(i / 4);
    const float values[4] = {z.x, z.y, z.z, z.w};
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const double d = row.centred(values[k]) * inv_t;
      if (d < floor || d + gumbel_bound(words.w[k]) < best || make_key(values[k], i + k) > last) continue;
      const double score = d + gumbel(words.w[k]);
      if (score > best || (score == best && i + k < winner)) {
        best = score;
        winner = i + k;
      }
    }
  }
  const auto bits = uint64_t(__double_as_longlong(best));
  const uint64_t descending = bits >> 63 ? bits : ~bits & ~(uint64_t(1) << 63);
  const uint64_t first = block_min(descending, s);
  const uint64_t id = descending == first ? uint64_t(winner) : kNoKey;
  return PYSPEC_PLANTED(2) ? int32_t(~block_min(descending == first ? ~id : kNoKey, s))
                           : int32_t(block_min(id, s));
}

// The pick from a row at an absolute position. Every thread returns the token; outputs are written.
__device__ inline int32_t pick(const float* logits, int64_t vocab, int64_t position, const Law& law,
                               int64_t num_logprobs, const Pick& out, Scratch& s) {
  const Row row(logits, vocab, s);
  const int t = int(threadIdx.x);
  if (row.dead()) {
    if (t == 0) *out.token = 0;
    if (t == 0 && out.logprob) *out.logprob = __uint_as_float(0x7fc00000u);
    for (int64_t i = t; i < num_logprobs; i += kThreads) {
      out.top_tokens[i] = int32_t(i);
      out.top_logprobs[i] = __uint_as_float(0x7fc00000u);
    }
    return 0;
  }
  const double raw_sum = out.logprob ? lane_sum(row, s, Weights{row, kLog2e, kNoKey}) : 1;
  const double log_sum = log_positive(raw_sum);
  const bool greedy = law.temperature < kGreedyBelow;
  const bool filter_k = !greedy && law.top_k > 0 && law.top_k < vocab, filter_p = !greedy && law.top_p < 1;
  const bool short_k = filter_k && law.top_k <= kMaxSelected;
  // One pass gives the most likely tokens, top-k's and the head in which top-p usually ends.
  const int head = short_k ? law.top_k : filter_p ? kHead : 0;
  const int wanted = head > num_logprobs ? head : int(num_logprobs);
  const int found = wanted > 0 ? select_first(row, wanted, s) : 0;
  for (int64_t i = t; i < num_logprobs; i += kThreads) {
    const uint64_t key = s.lists.keys[i];
    out.top_tokens[i] = key_id(key);
    out.top_logprobs[i] = float(row.centred(key_value(key)) - log_sum);
  }
  int32_t token = row.argmax();
  if (!greedy) {
    const double inv_t = 1.0 / double(law.temperature), scale = kLog2e * inv_t;
    uint64_t last = kNoKey;
    if (short_k && head <= found) last = s.lists.keys[head - 1];
    if (filter_k && !short_k) last = descend({row, 0, kNoKey}, law.top_k, s).last;  // weights 1: a count
    if (filter_p) {
      const bool same = out.logprob && scale == kLog2e && last == kNoKey;
      const double total = same ? raw_sum : lane_sum(row, s, Weights{row, scale, last});
      if (filter_k && !short_k) select_first(row, head, s);  // the descent wrote over them
      last = top_p_last({row, scale, last}, law.top_p, total, head < found ? head : found,
                        short_k || found < head, s);
    }
    const double floor = law.min_p >= 0x1p-126f ? log_positive(law.min_p) : -double(kInfinity);
    token = draw(row, Noise(law.seed, law.stream, position), inv_t, floor, last, s);
  }
  if (t == 0) {
    *out.token = token;
    if (out.logprob) *out.logprob = float(row.centred(row.value(token)) - log_sum);
  }
  return token;
}

}  // namespace pyspec::cuda
