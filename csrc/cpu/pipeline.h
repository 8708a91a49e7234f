// SPDX-License-Identifier: Apache-2.0
// One row of logits to one token: the processed law and the shared-noise pick of pyspec/spec/pipeline.py, bit
// for bit, touching as little of the row as the result allows. Included after cpu/kernel.h.
#pragma once

#include "cpu/noise.h"
#include "cpu/order.h"

namespace pyspec::PYSPEC_ISA {

constexpr double kGreedyBelow = 0x1p-16;

struct Law {
  float temperature, top_p, min_p, typical_p;
  int32_t top_k, stream;
  int64_t seed;
};

struct Pick {
  int32_t* token;
  float* logprob;
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
    infinite = max == std::numeric_limits<float>::infinity();
    if (infinite) {  // +inf is all that can be drawn
      for (int64_t i = 0; i < blocks * kBlock; ++i) z[i] = z[i] == max ? 0.0f : kLowest;
      for (int64_t b = 0; b < blocks; ++b) block_max[b] = block_max[b] == max ? 0.0f : kLowest;
      max = 0;
    }
  }

  bool dead() const { return max == kLowest; }

  // The first in order of the tokens left.
  int32_t first() const {
    const float best = *std::max_element(block_max, block_max + blocks);
    int64_t b = 0;
    while (block_max[b] != best) ++b;
    int64_t i = b * kBlock;
    while (z[i] != best) ++i;
    return int32_t(i);
  }

  double centred(float value) const { return double(value) - double(max); }
  // The same of a value as it stands in the logits; it needs no memory of the row.
  double centred_raw(float logit) const {
    const float value = cleaned(logit);
    return centred(!infinite ? value : value == std::numeric_limits<float>::infinity() ? 0.0f : kLowest);
  }

  // The sum of w = 2^e, e = (z - max) * scale, in 32 lanes, then lane i + lane i + half; and that of w e.
  struct Sums {
    double weight, moment;
  };
  template <bool kMoment>
  Sums sums(double scale) const {
    F64 weight[kSumLanes / kWide] = {}, moment[kSumLanes / kWide] = {};
    for (int64_t b = 0; b < blocks; ++b) {
      if (block_max[b] == kLowest) continue;  // nothing beside the 1 of the best token
      for (int i = 0; i < kBlock; i += kSumLanes) {
        for (int v = 0; v < kSumLanes / kWide; ++v) {
          const F64 e = (widen(z + b * kBlock + i + v * kWide) - double(max)) * scale;
          const F64 w = exp2_negative<F64, U64>(e);
          weight[v] += w;
          if constexpr (kMoment) moment[v] += e > kExp2Lowest ? w * e : F64{};
        }
      }
    }
    return {fold(weight), kMoment ? fold(moment) : 0};
  }
  double sum_exp2(double scale) const { return sums<false>(scale).weight; }

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
    cut([=](float best) { return best >= value; },
        [=](float x, int64_t id) { return x > value || make_key(x, id) <= limit; });
  }

  // Keeps the shortest head of the order whose mass reaches top_p of the whole.
  void cut_top_p(float top_p, double inv_t) {
    const double total = sum_exp2(kLog2e * inv_t), limit = double(top_p) * total;
    if (blocks > kUsualHead && cut_at_mass(select(kUsualHead, kFinite), inv_t, limit)) return;
    const int64_t found = collect_sorted(floor_of_mass(top_p, total, inv_t));
    if (!cut_at_mass(found, inv_t, limit)) cut_after(found - 1);
  }

  // Drops what is less than min_p times as likely as the best.
  void cut_min_p(float min_p, double inv_t) {
    const double lowest = log_positive(min_p);
    cut([=, this](float best) { return centred(best) * inv_t >= lowest; },
        [=, this](float x, int64_t) { return centred(x) * inv_t >= lowest; });
  }

  // Keeps the tokens whose surprise is nearest the entropy until their mass reaches typical_p of the whole.
  void cut_typical_p(float typical_p, double inv_t) {
    const double scale = kLog2e * inv_t;
    const Sums sum = sums<true>(scale);
    const double mean = sum.moment / sum.weight, limit = double(typical_p) * sum.weight;
    if (blocks > kUsualHead && cut_around(select(kUsualHead, kFinite), false, scale, mean, limit)) return;
    // Once all above the mean are taken, the rest goes down to the floor of the mass at most; before that it
    // goes no further down than the best token is up.
    const float floor = std::min(floor_of_mass(typical_p, sum.weight, inv_t), floor_at(2 * mean / scale));
    if (cut_around(collect_sorted(floor), false, scale, mean, limit)) return;
    cut_around(collect_sorted(kFinite), true, scale, mean, limit);
  }

  // Drops what the filters of the law drop.
  void filter(const Law& law, double inv_t) {
    if (law.top_k > 0 && law.top_k < V) {
      const int64_t found = select(law.top_k, kFinite);
      cut_after(std::min<int64_t>(law.top_k, found) - 1);
    }
    if (law.top_p < 1) cut_top_p(law.top_p, inv_t);
    if (law.min_p >= 0x1p-126f) cut_min_p(law.min_p, inv_t);
    if (law.typical_p < 1) cut_typical_p(law.typical_p, inv_t);
  }

  // The weights 2^e of the tokens left, 0 where there is none or e is below -126: [blocks * 64], see
  // padded().
  void weights(double* to, double scale) const {
    for (int64_t b = 0; b < blocks; ++b) {
      for (int64_t i = b * kBlock; i < (b + 1) * kBlock; i += kWide) {
        F64 w{};
        if (block_max[b] > kLowest) {
          const F64 e = (widen(z + i) - double(max)) * scale;
          w = e >= -126.0 ? exp2_negative<F64, U64>(e) : w;
        }
        std::memcpy(to + i, &w, sizeof w);
      }
    }
  }
  static int64_t padded(int64_t vocab) { return (vocab + kBlock - 1) / kBlock * kBlock; }

  // argmax of d + noise over the tokens left.
  int32_t draw(const Noise& noise, double inv_t) const {
    int64_t winner = first();
    double best = centred(z[winner]) * inv_t + gumbel(noise.word(winner));
    for (int64_t b = 0; b < blocks; ++b) {
      const double highest = centred(block_max[b]) * inv_t;
      if (highest + kMaxGumbel < best) continue;
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
        if (id == winner || word > winning_words(d - best)) continue;
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

 private:
  static constexpr int64_t kBlock = 64, kUsualHead = 256;
  static constexpr int kSumLanes = 32;

  static float cleaned(float from) {
    const float x = std::fabs(from) < 0x1p-126f ? 0.0f : from;
    return x == x ? x : kLowest;
  }
  static void clean(const float* from, float* to) {
    for (int64_t i = 0; i < kBlock; ++i) to[i] = cleaned(from[i]);
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

  static double fold(const F64* sum) {
    double lane[kSumLanes];
    std::memcpy(lane, sum, sizeof lane);
    for (int half = kSumLanes / 2; half; half /= 2)
      for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
  }

  // Drops the tokens for which keep(value, id) is false. may_keep(largest value of a block) says of a whole
  // block, unread, that none is kept.
  template <typename MayKeep, typename Keep>
  void cut(MayKeep may_keep, Keep keep) {
    for (int64_t b = 0; b < blocks; ++b) {
      if (!may_keep(block_max[b])) {
        block_max[b] = kLowest;  // its z are not read any more
        continue;
      }
      float* block = z + b * kBlock;
      for (int64_t i = 0; i < kBlock; ++i)
        if (!keep(block[i], b * kBlock + i)) block[i] = kLowest;
      block_max[b] = max_of(block);
    }
  }

  // A value that no token with z - max >= depth is below, whatever was rounded.
  float floor_at(double depth) const {
    const double slack = 1e-6 * (std::abs(double(max)) + std::abs(depth));
    return std::max(kFinite, float(double(max) + depth - slack));
  }

  // A value below which all tokens together weigh less than half of (1 - share) * total, so that those from
  // here on reach share * total.
  float floor_of_mass(float share, double total, double inv_t) const {
    if (V > int64_t(1) << 24) return kFinite;  // fewer rounded additions stay well within the other half
    return floor_at(log_positive(0.5 * (1.0 - double(share)) * total / double(V)) / inv_t);
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
    sort_keys(keys, spare, found);
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

  // typical-p by keys[0 .. found), sorted, which are all tokens left or, unless `complete`, those from some
  // value on: false if what it keeps may go beyond them.
  bool cut_around(int64_t found, bool complete, double scale, double mean, double limit) {
    const auto exponent = [&](int64_t i) { return key_centred(i) * scale; };
    constexpr double kNone = std::numeric_limits<double>::infinity();
    int64_t up = 0;
    while (up < found && exponent(up) >= mean) ++up;
    int64_t down = up;  // keys[up .. down) are taken; two pointers go outward from the mean
    double mass = 0, radius = 0;
    const auto above = [&] { return up > 0 ? exponent(up - 1) - mean : kNone; };
    const auto below = [&] { return down < found ? mean - exponent(down) : kNone; };
    do {
      if (down == found && (up == 0 || !complete)) break;
      const bool upward = above() <= below();
      radius = upward ? above() : below();
      mass += exp2_negative<double, uint64_t>(exponent(upward ? --up : down++));
    } while (mass < limit);
    while (above() <= radius) --up;
    while (below() <= radius) ++down;
    if (down == found && !complete) return false;
    const float highest = key_value(keys[up]), lowest = key_value(keys[down - 1]);
    cut([=](float best) { return best >= lowest; },
        [=](float x, int64_t) { return lowest <= x && x <= highest; });
    return true;
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
  bool infinite;     // +inf counts as 0 and all else as -inf
  float* z;          // [blocks * 64], -inf beyond V
  float* block_max;  // [blocks]
  float* work;       // [blocks]
  uint64_t* keys;    // [blocks * 64]
  uint64_t* spare;   // [blocks * 64]
};

// The most likely tokens of a raw row and their logprobs; returns the log of the sum of its exponentials.
inline double most_likely(Row& raw, int64_t num_logprobs, const Pick& out) {
  const double log_sum = raw.dead() ? 0 : log_positive(raw.sum_exp2(kLog2e));
  if (num_logprobs) raw.select(num_logprobs, Row::kLowest);
  for (int64_t i = 0; i < num_logprobs; ++i) {
    out.top_tokens[i] = raw.key_id(i);
    out.top_logprobs[i] = float(raw.key_centred(i) - log_sum);
  }
  return log_sum;
}

// The logprob of *out.token, 0 if not wanted; NaN, for the most likely tokens too, where the raw row or the
// row picked from has no law.
inline void finish(const Row& raw, const float* logits, double log_sum, bool with_logprobs, bool has_law,
                   int64_t num_logprobs, const Pick& out) {
  constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
  *out.logprob = !has_law        ? kNaN
                 : with_logprobs ? float(raw.centred_raw(logits[*out.token]) - log_sum)
                                 : 0.0f;
  if (!raw.dead() && has_law) return;
  for (int64_t i = 0; i < num_logprobs; ++i) {
    out.top_tokens[i] = int32_t(i);
    out.top_logprobs[i] = kNaN;
  }
}

// Picks from the edited row if there is one; logprobs are those of the raw row, 0 if not wanted.
inline void pick(const float* logits, const float* edited, int64_t vocab, int64_t position, const Law& law,
                 bool with_logprobs, int64_t num_logprobs, const Pick& out) {
  Row row(edited && !with_logprobs ? edited : logits, vocab);
  const Row raw = row;
  const double log_sum = with_logprobs ? most_likely(row, num_logprobs, out) : 0;
  if (edited && with_logprobs) row = Row(edited, vocab);  // in the memory of the raw row
  if (row.dead()) {
    *out.token = 0;
  } else if (law.temperature < kGreedyBelow) {
    *out.token = row.first();
  } else {
    const double inv_t = 1.0 / double(law.temperature);
    row.filter(law, inv_t);
    *out.token = row.draw(Noise(law.seed, law.stream, position), inv_t);
  }
  finish(raw, logits, log_sum, with_logprobs, !row.dead(), num_logprobs, out);
}

// What pick reports of a token that was picked otherwise; below 0: its row has no law.
inline void report(const float* logits, int64_t vocab, int32_t token, bool with_logprobs,
                   int64_t num_logprobs, const Pick& out) {
  *out.token = std::max(token, 0);
  if (!with_logprobs) {
    *out.logprob = token < 0 ? std::numeric_limits<float>::quiet_NaN() : 0.0f;
    return;
  }
  Row row(logits, vocab);
  const Row raw = row;
  finish(raw, logits, most_likely(row, num_logprobs, out), true, token >= 0, num_logprobs, out);
}

}  // namespace pyspec::PYSPEC_ISA
