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

// A cleaned row and the maximum of each block of 64 tokens, by which most blocks are skipped unread.
class Row {
 public:
  static constexpr float kLowest = -std::numeric_limits<float>::infinity();
  static constexpr float kFinite = std::numeric_limits<float>::lowest();

  Row(const float* logits, int64_t vocab) : V(vocab), blocks((vocab + kBlock - 1) / kBlock) {
    auto* memory = static_cast<char*>(thread_scratch(size_t(blocks) * (kBlock * 20 + 8)));
    keys = reinterpret_cast<uint64_t*>(memory);
    spare = keys + blocks * kBlock;
    z = reinterpret_cast<float*>(spare + blocks * kBlock);
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

  // The sum of 2^((z - max) * scale) in 32 lanes, then lane i + lane i + half.
  double sum_exp2(double scale) const {
    constexpr int kSumLanes = 32, kVectors = kSumLanes / kWide;
    F64 sum[kVectors] = {};
    for (int64_t b = 0; b < blocks; ++b) {
      if (block_max[b] == kLowest) continue;  // nothing beside the 1 of the best token
      for (int i = 0; i < kBlock; i += kSumLanes) {
        for (int v = 0; v < kVectors; ++v) {
          const F64 d = (widen(z + b * kBlock + i + v * kWide) - double(max)) * scale;
          sum[v] += exp2_negative<F64, U64>(d);
        }
      }
    }
    double lane[kSumLanes];
    std::memcpy(lane, sum, sizeof lane);
    for (int half = kSumLanes / 2; half; half /= 2)
      for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
  }

  // Writes sorted keys of the order (value descending, id ascending) to keys: of the tokens not below
  // `floor`, the first `count` <= V at least. Returns how many.
  int64_t select(int64_t count, float floor) {
    if (count <= blocks) {  // so many blocks reach their count-th largest maximum, so the count-th token does
      std::memcpy(work, block_max, size_t(blocks) * sizeof *work);
      floor = std::max(floor, nth_largest(work, blocks, count - 1));
    }
    return collect_sorted(floor);
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
    constexpr int64_t kUsualHead = 256;
    const double total = sum_exp2(kLog2e * inv_t), limit = double(top_p) * total;
    if (blocks > kUsualHead && cut_at_mass(select(kUsualHead, kFinite), inv_t, limit)) return;
    // All tokens lighter than this weigh together less than half of (1 - top_p) * total: the cut is above
    // them.
    const double light = 0.5 * (1.0 - double(top_p)) * total / double(V);
    float floor = kFinite;
    if (V <= int64_t(1) << 24) {  // so many rounded additions stay well within the other half
      const double depth = log_positive(light) / inv_t;
      floor = std::max(floor, float(double(max) + depth - 1e-6 * (std::abs(double(max)) + std::abs(depth))));
    }
    const int64_t found = collect_sorted(floor);
    if (!cut_at_mass(found, inv_t, limit)) cut_after(found - 1);
  }

  // argmax of d + noise over the tokens left with d >= floor.
  int32_t draw(const Noise& noise, double inv_t, double floor) const {
    int64_t winner = argmax();
    double best = gumbel(noise.word(winner));
    for (int64_t b = 0; b < blocks; ++b) {
      const double highest = centred(block_max[b]) * inv_t;
      if (highest < floor || highest + kMaxGumbel < best) continue;
      Noise::Words words[kBlock / Noise::kTokens];
      U64 least = U64{} + ~uint64_t(0);
      for (int i = 0; i < kBlock / Noise::kTokens; ++i) {
        words[i] = noise.words(b * kBlock + i * Noise::kTokens);
        for (const U64& w : words[i].w) least = w < least ? w : least;
      }
      uint64_t r = least[0];
      for (int i = 1; i < kWide; ++i) r = std::min<uint64_t>(r, least[i]);
      if (r > winning_words(highest - best)) continue;
      for (int i = 0; i < kBlock; ++i) {
        const int64_t id = b * kBlock + i;
        const double d = centred(z[id]) * inv_t;
        const uint64_t word = words[i / Noise::kTokens].w[i % 4][i % Noise::kTokens / 4];
        if (d < floor || id == winner || word > winning_words(d - best)) continue;
        const double score = d + gumbel(uint32_t(word));
        if (score > best || (score == best && id < winner)) {
          best = score;
          winner = id;
        }
      }
    }
    return int32_t(winner);
  }

  int32_t key_id(int64_t i) const { return int32_t(uint32_t(keys[i])); }
  double key_centred(int64_t i) const { return centred(key_value(keys[i])); }
  float value(int32_t id) const { return z[id]; }

 private:
  static constexpr int64_t kBlock = 64;

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
      const float x = std::fabs(from[i]) < kTiny ? 0.0f : from[i];
      to[i] = x == x ? x : kLowest;
    }
  }

  static float max_of(const float* block) {
    alignas(64) float t[kLanes];
    store(t, PYSPEC_ISA::max(PYSPEC_ISA::max(load(block), load(block + 16)),
                             PYSPEC_ISA::max(load(block + 32), load(block + 48))));
#pragma GCC unroll 4
    for (int half = kLanes / 2; half; half /= 2)
      for (int i = 0; i < half; ++i) t[i] = t[i] > t[i + half] ? t[i] : t[i + half];
    return t[0];
  }

  void find_max() {
    max = kLowest;
    for (int64_t b = 0; b < blocks; ++b) max = std::max(max, block_max[b]);
  }

  // Keys of all tokens with z >= floor, sorted; returns how many.
  int64_t collect_sorted(float floor) {
    int64_t found = 0;
    for (int64_t b = 0; b < blocks; ++b) {
      if (block_max[b] < floor) continue;
      const int64_t end = std::min(V, (b + 1) * kBlock);
      for (int64_t i = b * kBlock; i < end; ++i) {
        keys[found] = make_key(z[i], i);
        found += z[i] >= floor;
      }
    }
    sort_keys(found);
    return found;
  }

  // Cuts after the first of keys[0 .. found), sorted, at which their mass reaches the limit; false if it does
  // not.
  bool cut_at_mass(int64_t found, double inv_t, double limit) {
    double mass = 0;
    for (int64_t i = 0; i < found; ++i) {
      mass += exp2_negative<double, uint64_t>(key_centred(i) * (kLog2e * inv_t));
      if (mass < limit) continue;
      cut_after(i);
      return true;
    }
    return false;
  }

  // Sorts keys[0 .. n) that stand in order of id: by insertion, or by a stable radix sort of the values'
  // 11-bit digits.
  void sort_keys(int64_t n) {
    if (n <= 48) {
      for (int64_t i = 1; i < n; ++i) {
        const uint64_t key = keys[i];
        int64_t j = i;
        for (; j > 0 && keys[j - 1] > key; --j) keys[j] = keys[j - 1];
        keys[j] = key;
      }
      return;
    }
    constexpr int kDigits = 3, kBits = 11, kBuckets = 1 << kBits;
    uint32_t count[kDigits][kBuckets] = {};
    for (int64_t i = 0; i < n; ++i)
      for (int d = 0; d < kDigits; ++d) ++count[d][keys[i] >> (32 + d * kBits) & (kBuckets - 1)];
    for (int d = 0; d < kDigits; ++d) {
      const int shift = 32 + d * kBits;
      if (count[d][keys[0] >> shift & (kBuckets - 1)] == uint64_t(n)) continue;  // all have this digit
      uint32_t start = 0;
      for (uint32_t& bucket : count[d]) bucket = std::exchange(start, start + bucket);
      for (int64_t i = 0; i < n; ++i) spare[count[d][keys[i] >> shift & (kBuckets - 1)]++] = keys[i];
      std::swap(keys, spare);
    }
  }

  // The n-th largest (from 0) of values[0 .. size), which are moved about.
  static float nth_largest(float* values, int64_t size, int64_t n) {
    int64_t first = 0, last = size - 1;
    while (first < last) {
      const float pivot = values[first + (last - first) / 2];
      int64_t i = first, j = last;
      while (i <= j) {
        while (values[i] > pivot) ++i;
        while (values[j] < pivot) --j;
        if (i <= j) std::swap(values[i++], values[j--]);
      }
      if (n <= j) {
        last = j;
      } else if (n >= i) {
        first = i;
      } else {
        break;
      }
    }
    return values[n];
  }

  // The largest random word with which a token that is `behind` the best score (d - best) might still win.
  // Since -log(-log(1 - v)) <= -log(v), it must have v <= exp(behind): here the next power of two, with 0.7 %
  // to spare for every rounding. What passes is scored exactly.
  static uint64_t winning_words(double behind) {
    const double exponent = behind * kLog2e + 0.01 + 33;
    return exponent >= 33 ? ~uint64_t(0) : exponent < 0 ? 0 : uint64_t(1) << int(exponent);
  }

  int64_t V, blocks;
  float max;
  float* z;          // [blocks * 64], -inf beyond V
  float* block_max;  // [blocks]
  float* work;       // [blocks]
  uint64_t* keys;    // [blocks * 64]
  uint64_t* spare;   // [blocks * 64]
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
  const double log_sum = out.logprob ? log_positive(row.sum_exp2(kLog2e)) : 0;
  if (num_logprobs) {
    row.select(num_logprobs, Row::kLowest);
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
      const int64_t found = row.select(law.top_k, Row::kFinite);
      row.cut_after(std::min<int64_t>(law.top_k, found) - 1);
    }
    if (law.top_p < 1) row.cut_top_p(law.top_p, inv_t);
    const double floor =
        law.min_p >= 0x1p-126f ? log_positive(law.min_p) : -std::numeric_limits<double>::infinity();
    *out.token = row.draw(Noise(law.seed, law.stream, position), inv_t, floor);
  }
  if (out.logprob) *out.logprob = float(row.centred(row.value(*out.token)) - log_sum);
}

}  // namespace pyspec::PYSPEC_ISA
