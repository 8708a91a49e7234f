// SPDX-License-Identifier: Apache-2.0
// top-k and top-p of a row without sorting it: what the filters of a law keep, exactly as
// pyspec/spec/pipeline.py does, whose sums have an order.
#pragma once

#include <cstdint>

#include "cuda/logits.cuh"

namespace pyspec::cuda {

constexpr int kHead = 384;  // tokens in which top-p usually ends

// The tokens that filters keep: those up to the key `last`. If listed > 0 they are lists.keys[0 .. listed).
struct Kept {
  uint64_t last = kNoKey;
  int listed = 0;
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

// lane_sum where only lists.keys[0 .. found) have weights, from the list alone.
__device__ inline double listed_sum(const Weights& weights, int found, Scratch& s) {
  static_assert(2 * kMaxSelected <= 2 * 4 * kPlane);
  const int t = int(threadIdx.x);
  auto* by_id = reinterpret_cast<uint64_t*>(s.lists.weights);
  double* weight = s.lists.weights + kMaxSelected;
  for (int i = t; i < found; i += kThreads) by_id[i] = s.lists.keys[i] << 32 | s.lists.keys[i] >> 32;
  sort_keys(by_id, found);
  for (int i = t; i < found; i += kThreads) {
    const uint64_t key = by_id[i] << 32 | by_id[i] >> 32;
    weight[i] = weights.of(key_value(key), key_id(key));
  }
  __syncthreads();
  double sum = 0;
  if (t < kLanes)
    for (int i = 0; i < found; ++i)
      if ((by_id[i] >> 32) % kLanes == uint64_t(t)) sum += weight[i];
  return fold_lanes(sum, s);
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

// What top-p keeps of the tokens up to weights.last. lists.keys[0 .. found) are the first of them in order,
// all of them if `complete`; total is the sum of their weights.
__device__ inline Kept top_p_kept(const Weights& weights, double top_p, double total, int found,
                                  bool complete, Scratch& s) {
  const Row& row = weights.row;
  const double limit = top_p * total;
  double mass = 0;
  int reached = add_in_order(weights, found, limit, mass, s);
  if (reached < found) return {s.lists.keys[reached], reached + 1};
  uint64_t after = s.lists.keys[found - 1];
  if (complete || key_value(after) == -kInfinity) return {weights.last, found};
  // More tokens than the list has: sums in another order find the cut, unless it is so close that rounding
  // may decide. Each of V additions errs by at most 2^-53 of the total, here and in the specification:
  // together V 2^-52.
  const double slack = PYSPEC_PLANTED(6) ? 0 : double(row.vocab()) * 0x1p-51 * total;
  const Cut cut = descend(weights, limit, s);
  if (cut.last != kNoKey && cut.before + slack < limit && cut.before + cut.own - slack >= limit)
    return {cut.last, 0};
  for (;;) {  // in order to the end, 1024 tokens a pass
    found = select_next(row, kMaxSelected, after, weights.last, s);
    if (found == 0) return {weights.last, 0};
    reached = add_in_order(weights, found, limit, mass, s);
    if (reached < found) return {s.lists.keys[reached], 0};
    after = s.lists.keys[found - 1];
  }
}

}  // namespace pyspec::cuda
