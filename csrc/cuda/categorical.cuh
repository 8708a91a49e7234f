// SPDX-License-Identifier: Apache-2.0
// Drawing a token from weights by one block: pyspec/spec/categorical.py, bit for bit. Used by draw_children
// and verify_drawn.
#pragma once

#include <cstdint>

#include "cuda/logits.cuh"

namespace pyspec::cuda {

constexpr double kLeastExponent = -126;

// 1 / temperature, 0 at temperature 0.
__device__ inline double inverse_of(float temperature) {
  return temperature < kGreedyBelow ? 0 : 1.0 / double(temperature);
}

// The weights of softmax(z / temperature): 2^e, 0 below 2^-126; at temperature 0 the first token's alone.
struct PlainWeights {
  const Row& row;
  double inv_t;

  __device__ double of(float z, int64_t id) const {
    if (inv_t == 0) return id == row.argmax() ? 1.0 : 0.0;
    const double e = row.centred(z) * (kLog2e * inv_t);
    return e >= kLeastExponent ? exp2_negative(e) : 0.0;
  }
};

// The sums of the lanes (id mod 32) of a row's weights, to s.lanes: each one chain of additions, as in
// lane_sum. weigh(i, w) sets the weights of tokens i .. i + 3, 0 beyond V. Ends with a barrier.
template <typename Weigh>
__device__ inline void lane_sums(int64_t V, Scratch& s, Weigh&& weigh) {
  double sum = 0;
  const int t = int(threadIdx.x);
  int half = 0;  // of the weights: one is written while the other is added up
  for (int64_t base = 0; base < V; base += kChunk, half ^= 1) {
    double w[4], *weights = s.lists.weights + half * 4 * kPlane;
    weigh(base + 4 * t, w);
#pragma unroll
    for (int k = 0; k < 4; ++k) weights[k * kPlane + t] = w[k];
    __syncthreads();
    if (t < kLanes) {
      const double* lane = weights + t % 4 * kPlane + t / 4;
#pragma unroll 8
      for (int r = 0; r < kThreads; r += kLanes / 4) sum += lane[r];
    }
  }
  if (t < kLanes) s.lanes[t] = sum;
  __syncthreads();
}

// The sum of s.lanes, lane i + lane i + half, to every thread.
__device__ inline double sum_of_lanes(Scratch& s) {
  const double sum = fold_lanes(threadIdx.x < kLanes ? s.lanes[threadIdx.x] : 0.0, s);
  __syncthreads();  // it is written again
  return sum;
}

// The token that u draws by weights whose lane sums stand in s.lanes, to every thread; -1: there are none.
// weight(id) is the weight of one token: only those of the lane that u falls into are asked for.
template <typename Weight>
__device__ inline int32_t categorical(int64_t V, double u, Scratch& s, Weight&& weight) {
  double end = 0;
#pragma unroll 1  // 32 sums at a time would spill
  for (int l = 0; l < kLanes; ++l) end += s.lanes[l];
  if (end == 0) return -1;
  const double target = u * end;
  double before = 0, ends = 0;
  int lane = -1;
#pragma unroll 1
  for (int l = 0; l < kLanes; ++l) {
    const double previous = ends;
    ends += s.lanes[l];
    if (s.lanes[l] == 0) continue;
    lane = l;
    before = previous;
    if (target < ends) break;
  }
  const double rest = target - (PYSPEC_PLANTED(34) ? 0 : before);
  double below = 0;
  int32_t last = -1;
  for (int64_t first = lane; first < V; first += int64_t(kThreads) * kLanes) {
    const int64_t id = first + int64_t(threadIdx.x) * kLanes;
    s.lists.weights[threadIdx.x] = id < V ? weight(id) : 0.0;
    if (!PYSPEC_PLANTED(32)) __syncthreads();
    if (threadIdx.x == 0) {
      for (int i = 0; i < kThreads && !(rest < below); ++i) {
        if (s.lists.weights[i] == 0) continue;
        below += s.lists.weights[i];
        last = int32_t(first + i * kLanes);
      }
      s.total = below;
      s.count = last;
    }
    __syncthreads();
    if (rest < s.total) break;
  }
  return s.count;
}

}  // namespace pyspec::cuda
