// SPDX-License-Identifier: Apache-2.0
// Drawing a token from weights, and the numbers it is drawn with: pyspec/spec/categorical.py and `uniform` of
// noise.py, bit for bit.
#pragma once

#include "cpu/kernel.h"
#include "cpu/pipeline.h"

namespace pyspec::PYSPEC_ISA {

enum class Purpose : uint32_t { kDraft = 1, kAccept = 2, kExtra = 3 };

// Uniform numbers of one step of a request.
struct Uniform {
  int64_t seed;
  int32_t stream, step;

  double operator()(int64_t node, Purpose purpose, int64_t item = 0) const {
    uint32_t c[4] = {uint32_t(item), uint32_t(step), uint32_t(stream),
                     uint32_t(purpose) | uint32_t(node) << 8};
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(uint64_t(seed) >> 32);
    for (int round = 0; round < 10; ++round) {
      const uint64_t low = uint64_t(0xD2511F53) * c[0], high = uint64_t(0xCD9E8D57) * c[2];
      const uint32_t next[4] = {uint32_t(high >> 32) ^ c[1] ^ k0, uint32_t(high),
                                uint32_t(low >> 32) ^ c[3] ^ k1, uint32_t(low)};
      std::memcpy(c, next, sizeof c);
      k0 += 0x9E3779B9u;
      k1 += 0xBB67AE85u;
    }
    return double((uint64_t(c[0]) << 32 | c[1]) >> 11) * 0x1p-53;
  }
};

// Sums in lanes (index mod 32) of the values that at(i) gives for the doubles i .. i + kWide - 1.
struct Lanes {
  static constexpr int kCount = 32;
  double sum[kCount];

  template <typename At>
  Lanes(int64_t size, At at) {
    F64 wide[kCount / kWide] = {};
    for (int64_t i = 0; i < size; i += kCount)
      for (int v = 0; v < kCount / kWide; ++v) wide[v] += at(i + v * kWide);
    std::memcpy(sum, wide, sizeof sum);
  }

  double total() const {  // lane i + lane i + half
    double lane[kCount];
    std::memcpy(lane, sum, sizeof lane);
    for (int half = kCount / 2; half; half /= 2)
      for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
  }
};

inline F64 load_wide(const double* p) {
  F64 x;
  std::memcpy(&x, p, sizeof x);
  return x;
}

// The token that u draws by the weights that `at` gives as vectors and `value` one by one; -1: there are
// none.
template <typename At, typename Value>
int32_t categorical(int64_t size, double u, At at, Value value) {
  const Lanes lanes(size, at);
  double ends[Lanes::kCount], end = 0;
  for (int l = 0; l < Lanes::kCount; ++l) ends[l] = end += lanes.sum[l];
  if (end == 0) return -1;
  const double target = u * end;
  int lane = -1;
  for (int l = 0; l < Lanes::kCount; ++l) {
    if (lanes.sum[l] == 0) continue;
    lane = l;
    if (target < ends[l]) break;
  }
  const double rest = target - (lane ? ends[lane - 1] : 0.0);
  int64_t last = -1;
  double below = 0;
  for (int64_t i = lane; i < size; i += Lanes::kCount) {
    const double w = value(i);
    if (w == 0) continue;
    below += w;
    last = i;
    if (rest < below) break;
  }
  return int32_t(last);
}

inline int32_t categorical(const double* weight, int64_t size, double u) {
  return categorical(
      size, u, [=](int64_t i) { return load_wide(weight + i); }, [=](int64_t i) { return weight[i]; });
}

inline double lane_sum(const double* weight, int64_t size) {
  return Lanes(size, [=](int64_t i) { return load_wide(weight + i); }).total();
}

// The weights of a row's law [Row::padded(vocab)]; false if it has none.
inline bool law_weights(Row& row, int64_t vocab, const Law& law, double* to) {
  if (row.dead()) return false;
  if (law.temperature < kGreedyBelow) {
    std::fill_n(to, Row::padded(vocab), 0.0);
    to[row.first()] = 1;
    return true;
  }
  const double inv_t = 1.0 / double(law.temperature);
  row.filter(law, inv_t);
  row.weights(to, kLog2e * inv_t);
  return true;
}

}  // namespace pyspec::PYSPEC_ISA
