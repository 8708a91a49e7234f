// SPDX-License-Identifier: Apache-2.0
// One row of logits to one token: the processed law and the shared-noise pick of pyspec/spec/pipeline.py, bit
// for bit, touching as little of the row as the result allows. Included after cpu/kernel.h.
#pragma once

#include "cpu/noise.h"

namespace pyspec::PYSPEC_ISA {

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

// Types of this namespace: what the standard library makes of them is compiled for this instruction set
// alone.
struct Before {
  bool operator()(uint64_t a, uint64_t b) const { return a < b; }
};
struct Above {
  bool operator()(float a, float b) const { return a > b; }
};

// A cleaned row and the maximum of each block of 64 tokens, by which most blocks are skipped unread.
class Row {
 public:
  Row(const float* logits, int64_t vocab) : V(vocab), blocks((vocab + kBlock - 1) / kBlock) {
    auto* memory = static_cast<char*>(thread_scratch(size_t(blocks) * (kBlock * 12 + 8)));
    keys = reinterpret_cast<uint64_t*>(memory);
    z = reinterpret_cast<float*>(keys + blocks * kBlock);
    block_max = z + blocks * kBlock;
    work = block_max + blocks;
    for (int64_t b = 0; b < blocks; ++b) {
      float* block = z + b * kBlock;
      if (const int64_t n = std::min<int64_t>(kBlock, V - b * kBlock); n < kBlock) {
        for (int64_t i = 0; i < kBlock; ++i) block[i] = i < n ? logits[b * kBlock + i] : kLowest;
        clean(block, block);
      } else {
        clean(logits + b * kBlock, block);
      }
      block_max[b] = max_of(block);
    }
    find_max();
    if (max == std::numeric_limits<float>::infinity()) {  // +inf is all that can be drawn
      for (int64_t i = 0; i < blocks * kBlock; ++i) z[i] = z[i] == max ? 0.0f : kLowest;
      for (int64_t b = 0; b < blocks; ++b) block_max[b] = block_max[b] == max ? 0.0f : kLowest;
      max = 0;
    }
  }

  bool dead() const { return max == kLowest; }

  int32_t argmax() const {
    int64_t b = 0, i = 0;
    while (block_max[b] != max) ++b;
    for (i = b * kBlock; z[i] != max;) ++i;
    return int32_t(i);
  }

  double centred(float value) const { return double(value) - double(max); }

  // The sum of exp((z - max) * inv_t) in 32 lanes, then lane i + lane i + half.
  double sum_exp(double inv_t) const {
    constexpr int kSumLanes = 32, kVectors = kSumLanes / kWide;
    F64 sum[kVectors] = {};
    for (int64_t b = 0; b < blocks; ++b) {
      if (block_max[b] == kLowest) continue;  // adds exactly 0
      for (int i = 0; i < kBlock; i += kSumLanes) {
        for (int v = 0; v < kVectors; ++v) {
          F32Half part;
          std::memcpy(&part, z + b * kBlock + i + v * kWide, sizeof part);
          const F64 d = (__builtin_convertvector(part, F64) - double(max)) * inv_t;
          sum[v] += exp_nonpositive<F64, U64>(d);
        }
      }
    }
    double lane[kSumLanes];
    std::memcpy(lane, sum, sizeof lane);
    for (int half = kSumLanes / 2; half; half /= 2)
      for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
  }

  // Writes the first `count` keys of the order (value descending, id ascending) to keys[0 .. count), unsorted
  // but for the last, which is the largest.
  void select(int64_t count) {
    float floor = kLowest;
    if (count <= blocks) {  // so many blocks reach their count-th largest maximum, so the count-th token does
      std::memcpy(work, block_max, size_t(blocks) * sizeof *work);
      std::nth_element(work, work + count - 1, work + blocks, Above{});
      floor = work[count - 1];
    }
    const int64_t found = collect(floor);
    std::nth_element(keys, keys + count - 1, keys + found, Before{});
  }

  // Drops every token that comes after keys[last] in the order.
  void cut_after(int64_t last) {
    const uint64_t limit = keys[last];
    const float value = key_value(limit);
    for (int64_t b = 0; b < blocks; ++b) {
      if (block_max[b] < value) {
        block_max[b] = kLowest;  // its z are not read any more
        continue;
      }
      float* block = z + b * kBlock;
      for (int64_t i = 0; i < kBlock; ++i)
        if (block[i] <= value && make_key(block[i], b * kBlock + i) > limit) block[i] = kLowest;
      block_max[b] = max_of(block);
    }
  }

  // Keeps the shortest head of the order whose mass reaches top_p of the whole.
  void cut_top_p(float top_p, double inv_t) {
    const double total = sum_exp(inv_t), limit = double(top_p) * total;
    // All tokens lighter than this weigh together less than half of (1 - top_p) * total: the cut is above
    // them.
    const double light = 0.5 * (1.0 - double(top_p)) * total / double(V);
    float floor = kLowest;
    if (V <= int64_t(1) << 24) {  // so many rounded additions stay well within the other half
      const double depth = log_positive(light) / inv_t;
      floor = float(double(max) + depth - 1e-6 * (std::abs(double(max)) + std::abs(depth)));
    }
    const int64_t found = collect(floor);
    double mass = 0;
    int64_t count = 0;
    for (int64_t chunk = 64; count < found && (mass < limit || count == 0); chunk *= 4) {
      const int64_t end = std::min(found, count + chunk);
      if (end < found) std::nth_element(keys + count, keys + end, keys + found, Before{});
      std::sort(keys + count, keys + end, Before{});
      while (count < end && (mass < limit || count == 0)) {
        const double d = centred(key_value(keys[count++])) * inv_t;
        mass += exp_nonpositive<double, uint64_t>(d);
      }
    }
    cut_after(count - 1);
  }

  // argmax of d + noise over the tokens left with d >= floor.
  int32_t draw(const Noise& noise, double inv_t, double floor) const {
    int64_t winner = argmax();
    double best = gumbel(noise.word(winner));
    alignas(64) uint32_t words[kBlock];
    alignas(64) float slack[kBlock];
    for (int64_t b = 0; b < blocks; ++b) {
      const double highest = centred(block_max[b]) * inv_t;
      if (highest < floor || highest + kMaxGumbel < best) continue;
      for (int i = 0; i < kBlock; i += Noise::kTokens) noise.words(b * kBlock + i, words + i);
      const float* block = z + b * kBlock;
      if (!may_win(block, words, inv_t, best, slack)) continue;
      for (int i = 0; i < kBlock; ++i) {
        const int64_t id = b * kBlock + i;
        if (slack[i] < 0 || id == winner) continue;
        const double d = centred(block[i]) * inv_t;
        const double score = d + gumbel(words[i]);
        if (d >= floor && (score > best || (score == best && id < winner))) {
          best = score;
          winner = id;
        }
      }
    }
    return int32_t(winner);
  }

  // Sorts keys[0 .. count) and gives the value and id of each.
  void sort_keys(int64_t count) { std::sort(keys, keys + count, Before{}); }
  int32_t key_id(int64_t i) const { return int32_t(uint32_t(keys[i])); }
  double key_centred(int64_t i) const { return centred(key_value(keys[i])); }
  float value(int32_t id) const { return z[id]; }

 private:
  static constexpr int64_t kBlock = 64;
  static constexpr float kLowest = -std::numeric_limits<float>::infinity();

  // Ascending keys are the order: value descending, then id ascending.
  static uint64_t make_key(float value, int64_t id) {
    const uint32_t bits = f32_to_bits(value);
    const uint32_t descending = bits >> 31 ? bits : ~bits & 0x7fffffffu;
    return uint64_t(descending) << 32 | uint64_t(id);
  }
  static float key_value(uint64_t key) {
    const uint32_t descending = uint32_t(key >> 32);
    return bits_to_f32(descending >> 31 ? descending : ~descending & 0x7fffffffu);
  }

  static void clean(const float* from, float* to) {
    constexpr float kTiny = 0x1p-126f;
    for (int64_t i = 0; i < kBlock; ++i) {
      const float x = from[i] == from[i] ? from[i] : kLowest;
      to[i] = std::fabs(x) < kTiny ? 0.0f : x;
    }
  }

  static float max_of(const float* block) {
    return reduce_max(PYSPEC_ISA::max(PYSPEC_ISA::max(load(block), load(block + 16)),
                                      PYSPEC_ISA::max(load(block + 32), load(block + 48))));
  }

  void find_max() {
    max = kLowest;
    for (int64_t b = 0; b < blocks; ++b) max = std::max(max, block_max[b]);
  }

  // Keys of all tokens with z >= floor, in order of id; returns how many.
  int64_t collect(float floor) {
    int64_t found = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      if (block_max[b] < floor) continue;
      const int64_t end = std::min(V, (b + 1) * kBlock);
      for (int64_t i = b * kBlock; i < end; ++i) {
        keys[found] = make_key(z[i], i);
        found += z[i] >= floor;
      }
    }
    return found;
  }

  // slack[i] < 0 only where token i surely loses to `best`; true if any is not. -log(-log(1 - v)) <= -log(v),
  // so a token needs v <= exp(d - best). Both sides are halved in scale (31 bits convert as int32); 0.1 % and
  // 1 absorb every rounding of the float32 arithmetic, and what is left is scored exactly.
  bool may_win(const float* block, const uint32_t* words, double inv_t, double best, float* slack) const {
    alignas(64) float behind[kBlock];
    alignas(64) int32_t halves[kBlock];
    for (int i = 0; i < kBlock; ++i) behind[i] = float((double(block[i]) - double(max)) * inv_t - best);
    for (int i = 0; i < kBlock; ++i) halves[i] = int32_t(words[i] >> 1);
    const F32 log2e = set1(1.44269504f), scale = set1(0x1p31f * 1.001f), one = set1(1.0f);
    F32 most = set1(-1.0f);
    for (int i = 0; i < kBlock; i += kLanes) {
      const F32 room = fma(exp2(load(behind + i) * log2e), scale, one) - to_f32(iload(halves + i));
      store(slack + i, room);
      most = PYSPEC_ISA::max(most, room);
    }
    return reduce_max(most) >= 0;
  }

  int64_t V, blocks;
  float max;
  float* z;          // [blocks * 64], -inf beyond V
  float* block_max;  // [blocks]
  float* work;       // [blocks]
  uint64_t* keys;    // [V]
};

inline void pick(const float* logits, int64_t vocab, int64_t position, const Law& law, int64_t num_logprobs,
                 const Pick& out) {
  constexpr double kGreedyBelow = 0x1p-16;
  Row row(logits, vocab);
  if (row.dead()) {
    *out.token = 0;
    if (out.logprob) *out.logprob = std::numeric_limits<float>::quiet_NaN();
    for (int64_t i = 0; i < num_logprobs; ++i) {
      out.top_tokens[i] = int32_t(i);
      out.top_logprobs[i] = std::numeric_limits<float>::quiet_NaN();
    }
    return;
  }
  const double log_sum = out.logprob ? log_positive(row.sum_exp(1.0)) : 0;
  if (num_logprobs) {
    row.select(num_logprobs);
    row.sort_keys(num_logprobs);
    for (int64_t i = 0; i < num_logprobs; ++i) {
      out.top_tokens[i] = row.key_id(i);
      out.top_logprobs[i] = float(row.key_centred(i) - log_sum);
    }
  }
  if (law.temperature < kGreedyBelow) {
    *out.token = row.argmax();
  } else {
    const double inv_t = 1.0 / double(law.temperature);
    if (law.top_k > 0 && law.top_k < vocab) {
      row.select(law.top_k);
      row.cut_after(law.top_k - 1);
    }
    if (law.top_p < 1) row.cut_top_p(law.top_p, inv_t);
    const double floor =
        law.min_p >= 0x1p-126f ? log_positive(law.min_p) : -std::numeric_limits<double>::infinity();
    *out.token = row.draw(Noise(law.seed, law.stream, position), inv_t, floor);
  }
  if (out.logprob) *out.logprob = float(row.centred(row.value(*out.token)) - log_sum);
}

}  // namespace pyspec::PYSPEC_ISA
