// SPDX-License-Identifier: Apache-2.0
// typical-p of a row without sorting it: which tokens it keeps of those that the other filters have kept,
// exactly as pyspec/spec/pipeline.py does, whose sums have an order. Used by pipeline.cuh and draw_children.
#pragma once

#include <cstdint>

#include "cuda/filters.cuh"

namespace pyspec::cuda {

// What typical-p keeps: e = (z - max) scale, at most `radius` away from the entropy's e.
struct Interval {
  double scale = 0, centre = 0, radius = __builtin_huge_val();

  __device__ double distance(double centred) const { return fabs(centred * scale - centre); }
  __device__ bool keeps(double centred) const { return distance(centred) <= radius; }
};

// What top-k, top-p and min-p have kept: keys up to `last`, d of at least `floor`.
struct Filtered {
  const Row& row;
  double inv_t, scale, floor;
  uint64_t last;

  __device__ bool has(float z, int64_t id) const {
    return z > -kInfinity && make_key(z, id) <= last && row.centred(z) * inv_t >= floor;
  }
  __device__ double e(float z) const { return row.centred(z) * scale; }
  __device__ double weight(float z) const { return exp2_negative(e(z)); }
};

// Calls each(token, its value) for four tokens from i on.
template <typename Each>
__device__ inline void for_each4(float4 z, int64_t i, Each each) {
  const float values[4] = {z.x, z.y, z.z, z.w};
#pragma unroll
  for (int k = 0; k < 4; ++k) each(k, values[k], i + k);
}

// The distance at which the weights of the tokens up to it, added up in no particular order, reach the limit,
// if rounding cannot decide that; else -1. A pass settles four bits of the distance.
__device__ inline double radius_by_digits(const Filtered& kept, const Interval& interval, double limit,
                                          double slack, Scratch& s) {
  const int t = int(threadIdx.x), warp = t / kWarp;
  uint64_t first = 0;  // the smallest distance with the settled digits
  double before = 0, own = 0;
  for (int shift = 60; shift >= 0; shift -= 4) {
    __syncthreads();  // the last sums, and what lay where the bins are, have been read
    for (int bin = 0; bin < kBins; ++bin) s.bins[bin][t] = 0;
    Ahead<Row> ahead(kept.row);
    for (int64_t i = 4 * t; i < kept.row.vocab(); i += kChunk)
      for_each4(ahead.take(i), i, [&](int, float z, int64_t id) {
        if (!kept.has(z, id)) return;
        const auto bits = uint64_t(__double_as_longlong(interval.distance(kept.row.centred(z))));
        if (shift == 60 || (bits ^ first) >> (shift + 4) == 0)
          s.bins[bits >> shift & (kBins - 1)][t] += kept.weight(z);
      });
    __syncthreads();
    double sum = 0;
    for (int column = t % kWarp; column < kThreads; column += kWarp) sum += s.bins[warp][column];
    for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    if (t % kWarp == 0) s.sums[warp] = sum;
    __syncthreads();
    int digit = 0;
    while (digit < kBins && before + s.sums[digit] < limit) before += s.sums[digit++];
    if (digit == kBins) return -1;
    own = s.sums[digit];
    first |= uint64_t(digit) << shift;
  }
  return before + slack < limit && before + own - slack >= limit ? __longlong_as_double(int64_t(first)) : -1;
}

// The same in the specification's order: outward from the centre on both sides, 1024 tokens or more a round.
__device__ inline double radius_in_order(const Filtered& kept, const Interval& interval, double limit,
                                         Scratch& s) {
  // Keys that are left: above the centre below `upper`, nearest is last; below the centre beyond `lower`.
  uint64_t upper = kNoKey, lower = 0;
  bool any_lower = false;
  double mass = 0, radius = 0;
  auto* above = reinterpret_cast<uint64_t*>(s.lists.weights);
  static_assert(kMaxSelected <= 2 * 4 * kPlane);
  for (;;) {
    const auto next = [&](bool is_above) {
      Ahead<Row> ahead(kept.row);
      return select(kept.row.vocab(), kMaxSelected, kNoKey, s, [&](int64_t i, uint64_t, uint64_t (&key)[4]) {
        for_each4(ahead.take(i), i, [&](int k, float z, int64_t id) {
          const uint64_t token = make_key(z, id);
          const bool left = is_above ? token < upper : !any_lower || token > lower;
          const bool side = (kept.e(z) >= interval.centre) == is_above;
          key[k] =
              id < kept.row.vocab() && left && side && kept.has(z, id) ? is_above ? ~token : token : kNoKey;
        });
      });
    };
    const int num_above = next(true);
    __syncthreads();
    for (int i = int(threadIdx.x); i < num_above; i += kThreads) above[i] = ~s.lists.keys[i];
    __syncthreads();
    const int num_below = next(false);
    __syncthreads();
    int i = 0, j = 0;
    while (mass < limit && (i < num_above || j < num_below)) {  // every thread alike
      if ((i == num_above && i == kMaxSelected) || (j == num_below && j == kMaxSelected)) break;
      const float up = i < num_above ? key_value(above[i]) : 0,
                  down = j < num_below ? key_value(s.lists.keys[j]) : 0;
      const double to_up = interval.distance(kept.row.centred(up)),
                   to_down = interval.distance(kept.row.centred(down));
      const bool takes_up = i < num_above && (j == num_below || (to_up <= to_down && !PYSPEC_PLANTED(7)));
      mass += kept.weight(takes_up ? up : down);
      radius = takes_up ? to_up : to_down;
      if (takes_up) {
        upper = above[i++];
      } else {
        lower = s.lists.keys[j++];
        any_lower = true;
      }
    }
    __syncthreads();  // the lists are written again
    if (mass >= limit || (num_above < kMaxSelected && num_below < kMaxSelected)) return radius;
  }
}

// What typical-p keeps of the tokens that the other filters have kept.
__device__ inline Interval typical(const Filtered& kept, double typical_p, Scratch& s) {
  const double total = lane_sum(kept.row, s, [&](int64_t i, float4 z, double (&w)[4]) {
    for_each4(z, i,
              [&](int k, float value, int64_t id) { w[k] = kept.has(value, id) ? kept.weight(value) : 0.0; });
  });
  __syncthreads();  // the total is written again
  const double sum = lane_sum(kept.row, s, [&](int64_t i, float4 z, double (&w)[4]) {
    for_each4(z, i, [&](int k, float value, int64_t id) {
      const bool counts = kept.has(value, id) && (kept.e(value) > -1000.0);
      w[k] = counts ? kept.weight(value) * kept.e(value) : 0.0;
    });
  });
  Interval interval{kept.scale, sum / total};
  const double limit = typical_p * total;
  // As for top-p: V additions err by at most V 2^-52 together.
  const double slack = PYSPEC_PLANTED(9) ? 0 : double(kept.row.vocab()) * 0x1p-51 * total;
  interval.radius = radius_by_digits(kept, interval, limit, slack, s);
  if (interval.radius < 0) {
    __syncthreads();  // the bins are read, the lists come in their place
    interval.radius = radius_in_order(kept, interval, limit, s);
  }
  return interval;
}

}  // namespace pyspec::cuda
