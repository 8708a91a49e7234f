// SPDX-License-Identifier: Apache-2.0
// A row of logits as a block sees it: cleaned, with its largest token, keys that order tokens, and weights.
// Used by every op that picks, draws or verifies tokens, and by build_tree.
#pragma once

#include <cstdint>

#include "cuda/noise.cuh"
#include "cuda/row.cuh"
#include "cuda/select.cuh"

namespace pyspec::cuda {

constexpr float kInfinity = __builtin_huge_valf();
constexpr double kGreedyBelow = 0x1p-16;  // of temperatures

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
    const auto consider = [&](float value, int64_t i) {
      if (value > best) {
        best = value;
        id = i;
      }
    };
    const auto consider4 = [&](float4 z, int64_t i) {
      consider(z.x, i);
      consider(z.y, i + 1);
      consider(z.z, i + 2);
      consider(z.w, i + 3);
    };
    int64_t i = id;
    constexpr int kLoads = 4;  // under way at a time: 32 KB a block, what the latency of memory asks for
    for (; vector_ && i + (kLoads - 1) * kChunk + 4 <= V_; i += kLoads * kChunk) {
      float4 z[kLoads];
#pragma unroll
      for (int j = 0; j < kLoads; ++j) z[j] = load4<true>(logits_ + i + j * kChunk, 4);
#pragma unroll
      for (int j = 0; j < kLoads; ++j)
        consider4({clean(z[j].x), clean(z[j].y), clean(z[j].z), clean(z[j].w)}, i + j * kChunk);
    }
    for (; i < V_; i += kChunk) consider4(quad(i), i);
    const uint64_t first = block_min(make_key(best, id), s);
    argmax_ = key_id(first);
    max_ = key_value(first);
    if (max_ == kInfinity) {
      infinite_ = true;
      max_ = 0;
    }
    own_ = make_key(infinite_ ? (best == kInfinity ? 0.0f : -kInfinity) : best, id);
  }

  __device__ int64_t vocab() const { return V_; }
  __device__ bool dead() const { return max_ == -kInfinity; }
  __device__ int32_t argmax() const { return argmax_; }
  // The first key of this thread's tokens; where it has none, one beyond all tokens.
  __device__ uint64_t own() const { return own_; }
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
    const float top = x == kInfinity ? 0.0f : -kInfinity, small = fabsf(x) < 0x1p-126f ? 0.0f : x;
    return infinite_ ? top : small == small ? small : -kInfinity;
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
    const float values[4] = {z.x, z.y, z.z, z.w};
    if (last == kNoKey) {  // all tokens: four chains of arithmetic side by side, without a branch
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const double weight = of(values[k]);
        w[k] = values[k] > -kInfinity ? weight : 0.0;
      }
    } else {  // most tokens have been filtered
#pragma unroll
      for (int k = 0; k < 4; ++k) w[k] = of(values[k], i + k);
    }
  }
};

}  // namespace pyspec::cuda
