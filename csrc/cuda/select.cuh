// SPDX-License-Identifier: Apache-2.0
// What a block does with a long row of tokens: the smallest key, the first n keys in order, and the sum of
// weights in the specification's order. Used by what uses logits.cuh; all threads of a block call
// together.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"

namespace pyspec::cuda {

constexpr int kThreads = 512, kWarps = kThreads / kWarp;
constexpr int kChunk = 4 * kThreads;  // tokens that a block takes at a time, 4 consecutive ones a thread
constexpr int kMaxSelected = 1024;    // keys that select can give
constexpr int kKeys = 2 * kChunk;     // keys collected between two sorts
constexpr int kLanes = 32;            // of a sum
constexpr int kPlane =
    kThreads + 4;          // weights of every thread's k-th token; + 4: planes start in other banks
constexpr int kBins = 16;  // of a digit of keys; one warp adds up each
constexpr uint64_t kNoKey = ~uint64_t(0);
constexpr unsigned kAllLanes = 0xffffffffu;
static_assert(kWarps == kBins && kKeys >= kMaxSelected + kChunk);

// A block's shared memory.
struct Scratch {
  struct Lists {
    uint64_t keys[kKeys];
    double weights[2 * 4 * kPlane];
  };
  uint64_t partial[kWarps];
  double sums[kBins], lanes[kLanes], total;
  int count;
  union {
    Lists lists;
    double bins[kBins][kThreads];  // a column a thread: no two threads add to one place
  };
};

// The smallest x of all threads.
__device__ inline uint64_t block_min(uint64_t x, Scratch& s) {
  for (int step = kWarp / 2; step > 0; step /= 2) {
    const uint64_t other = __shfl_xor_sync(kAllLanes, x, step);
    x = other < x ? other : x;
  }
  if (threadIdx.x % kWarp == 0) s.partial[threadIdx.x / kWarp] = x;
  __syncthreads();
  for (int warp = 0; warp < kWarps; ++warp) x = s.partial[warp] < x ? s.partial[warp] : x;
  if (!PYSPEC_PLANTED(14)) __syncthreads();  // partial is written again
  return x;
}

// Sorts keys[0 .. count) ascending (bitonic; the rest up to a power of two is filled with kNoKey). Begins and
// ends with a barrier.
__device__ inline void sort_keys(uint64_t* keys, int count) {
  int size = 1;
  while (size < count) size *= 2;
  for (int i = count + int(threadIdx.x); i < size; i += kThreads) keys[i] = kNoKey;
  __syncthreads();
  for (int run = 2; run <= size; run *= 2) {
    for (int step = run / 2; step > 0; step /= 2) {
      for (int pair = int(threadIdx.x); pair < size / 2; pair += kThreads) {
        const int i = 2 * pair - (pair & (step - 1)), j = i + step;
        const uint64_t a = keys[i], b = keys[j];
        const bool ascending = (i & run) == 0;
        if ((a > b) == ascending) {
          keys[i] = b;
          keys[j] = a;
        }
      }
      __syncthreads();
    }
  }
}

// A key beyond which none of the first n is, from one item's key of every thread (or kNoKey): the n-th of
// these. Few more than n items are below it, so that select need not begin with a full list.
__device__ inline uint64_t beyond_first(uint64_t own, int n, Scratch& s) {
  if (n > kThreads) return kNoKey;
  s.lists.keys[threadIdx.x] = own;
  sort_keys(s.lists.keys, kThreads);
  const uint64_t nth = s.lists.keys[n - 1];  // select waits before it writes keys again
  return nth == kNoKey ? nth : nth + 1;
}

// The first n <= kMaxSelected keys of items 0 .. size - 1 in ascending order, to lists.keys; returns how many
// there are. offer(i, worst, key) sets the keys of items i .. i + 3: all different, and kNoKey for what is no
// item. It may give kNoKey for an item not below `worst` too; none of the first n keys is at or beyond the
// `worst` to begin with. One pass: a list takes what is below the n-th key so far, and is sorted when full.
template <typename Offer>
__device__ inline int select(int64_t size, int n, uint64_t worst, Scratch& s, Offer offer) {
  uint64_t* keys = s.lists.keys;
  int kept = 0;
  if (threadIdx.x == 0) s.count = 0;
  __syncthreads();
  for (int64_t base = 0; base < size; base += kChunk) {
    uint64_t key[4];
    offer(base + 4 * int64_t(threadIdx.x), worst, key);
    int wanted = 0;
#pragma unroll
    for (int k = 0; k < 4; ++k) wanted += key[k] < worst;
    if (wanted > 0) {
      int slot = atomicAdd(&s.count, wanted);
#pragma unroll
      for (int k = 0; k < 4; ++k)
        if (key[k] < worst) keys[slot++] = key[k];
    }
    __syncthreads();
    const int count = s.count;
    if (!PYSPEC_PLANTED(4)) __syncthreads();  // everyone has read the count before it changes
    if (count > kKeys - kChunk || base + kChunk >= size) {
      sort_keys(keys, count);
      kept = count < n ? count : n;
      if (count >= n) worst = keys[n - 1];
      if (threadIdx.x == 0) s.count = kept;
      __syncthreads();
    }
  }
  return kept;
}

// The quads of a row, one chunk after another, each loaded two chunks before it is used.
template <typename Row>
class Ahead {
 public:
  __device__ explicit Ahead(const Row& row)
      : row_(row),
        next_(row.quad(4 * int64_t(threadIdx.x))),
        second_(row.quad(4 * int64_t(threadIdx.x) + kChunk)) {}
  __device__ float4 take(int64_t i) {
    const float4 z = next_;
    next_ = second_;
    second_ = row_.quad(i + 2 * kChunk);
    return z;
  }

 private:
  const Row& row_;
  float4 next_, second_;
};

// The sum of the lanes held by the first warp, lane i + lane i + half, to every thread.
__device__ inline double fold_lanes(double sum, Scratch& s) {
  const int t = int(threadIdx.x);
  if (t < kLanes) {
    for (int step = kLanes / 2; step > 0; step /= 2)
      sum += __shfl_down_sync(kAllLanes, sum, PYSPEC_PLANTED(5) ? kLanes / 2 / step : step);
    if (t == 0) s.total = sum;
  }
  __syncthreads();
  return s.total;
}

// The sum of the weights of all tokens in the order of pipeline.lane_sum: a lane is one chain of additions
// over the ids of one remainder modulo 32, which a thread of the first warp walks while the other warps
// compute the next chunk's weights. weigh(i, z, w) sets the weights of tokens i .. i + 3 whose logits are z.
template <typename Row, typename Weigh>
__device__ inline double lane_sum(const Row& row, Scratch& s, Weigh&& weigh) {
  double sum = 0;
  const int t = int(threadIdx.x);
  Ahead<Row> ahead(row);
  int half = 0;  // of the weights: one is written while the other is added up
  for (int64_t base = 0; base < row.vocab(); base += kChunk, half ^= 1) {
    const int64_t i = base + 4 * t;
    double w[4], *weights = s.lists.weights + half * 4 * kPlane;
    weigh(i, ahead.take(i), w);
#pragma unroll
    for (int k = 0; k < 4; ++k) weights[k * kPlane + t] = w[k];
    __syncthreads();
    if (t < kLanes) {
      const double* lane = weights + t % 4 * kPlane + t / 4;
#pragma unroll 8
      for (int r = 0; r < kThreads; r += kLanes / 4) sum += lane[r];
    }
  }
  return fold_lanes(sum, s);
}

}  // namespace pyspec::cuda
