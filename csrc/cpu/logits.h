// SPDX-License-Identifier: Apache-2.0
// A row of logits: its order, the sums and filters of pyspec/spec/pipeline.py and the draw, bit for bit,
// touching as little of the row as the result allows. Included after cpu/kernel.h.
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
  double centred_at(int32_t id) const { return centred(z[id]); }
  int64_t vocab() const { return V; }
  // The same of a value as it stands in the logits; it needs no memory of the row.
  double centred_raw(float logit) const {
    const float value = cleaned(logit);
    return centred(!infinite ? value : value == std::numeric_limits<float>::infinity() ? 0.0f : kLowest);
  }

  // The sum of w = 2^e, e = (z - max) * scale, in 32 lanes, then lane i + lane i + half; and that of w e.
  struct Sums {
    double weight, moment;
    double mean() const { return moment / weight; }
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
  double sum_exp2(double scale) {
    if (!whole || scale != kLog2e) return sums<false>(scale).weight;
    if (whole_sum == 0) whole_sum = sums<false>(scale).weight;
    return whole_sum;
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
    cut([=](float best) { return best >= value; },
        [=](float x, int64_t id) { return x > value || make_key(x, id) <= limit; });
  }

  // Keeps the first top_k tokens of the order.
  void cut_top_k(int32_t top_k) {
    if (top_k > 0 && top_k < V) cut_after(std::min<int64_t>(top_k, select(top_k, kFinite)) - 1);
  }

  // Keeps the shortest head of the order whose mass reaches top_p of the total of all, some of which may be
  // dropped already if the head is left.
  void cut_top_p(float top_p, double inv_t, double total) {
    const double limit = double(top_p) * total;
    if (blocks > kUsualHead && cut_at_mass(select(kUsualHead, kFinite), inv_t, limit)) return;
    const int64_t found = collect_sorted(floor_of_mass(top_p, total, inv_t));
    if (!cut_at_mass(found, inv_t, limit)) cut_after(found - 1);
  }

  // Drops what is less than min_p times as likely as the best.
  void cut_min_p(float min_p, double inv_t) {
    if (min_p < 0x1p-126f) return;
    const double lowest = log_positive(min_p);
    cut([=, this](float best) { return centred(best) * inv_t >= lowest; },
        [=, this](float x, int64_t) { return centred(x) * inv_t >= lowest; });
  }

  // Keeps the tokens whose e is nearest the mean until their mass reaches typical_p of the total of all, some
  // of which may be dropped already if those are left.
  void cut_typical_p(float typical_p, double inv_t, double mean, double total) {
    const double scale = kLog2e * inv_t, limit = double(typical_p) * total;
    if (blocks > kUsualHead && cut_around(select(kUsualHead, kFinite), false, scale, mean, limit)) return;
    // Once all above the mean are taken, the rest goes down to the floor of the mass at most; before that it
    // goes no further down than the best token is up.
    const float floor = std::min(floor_of_mass(typical_p, total, inv_t), floor_at(2 * mean / scale));
    if (cut_around(collect_sorted(floor), false, scale, mean, limit)) return;
    cut_around(collect_sorted(kFinite), true, scale, mean, limit);
  }

  // Drops what the filters of the law drop.
  void filter(const Law& law, double inv_t) {
    cut_top_k(law.top_k);
    if (law.top_p < 1) cut_top_p(law.top_p, inv_t, sum_exp2(kLog2e * inv_t));
    cut_min_p(law.min_p, inv_t);
    if (law.typical_p == 1) return;
    const Sums sum = sums<true>(kLog2e * inv_t);
    cut_typical_p(law.typical_p, inv_t, sum.mean(), sum.weight);
  }

  // The weight of the tokens whose e is nearer to `centre` than `radius`, and of those just as far, added in
  // any order.
  struct Masses {
    double nearer, same;
  };
  Masses masses(double scale, double centre, double radius) const {
    F64 nearer[kSumLanes / kWide] = {}, same[kSumLanes / kWide] = {};
    for (int64_t b = 0; b < blocks; ++b) {
      if (centred(block_max[b]) * scale - centre < -radius) continue;
      for (int i = 0; i < kBlock; i += kSumLanes) {
        for (int v = 0; v < kSumLanes / kWide; ++v) {
          const F64 e = (widen(z + b * kBlock + i + v * kWide) - double(max)) * scale;
          const F64 w = exp2_negative<F64, U64>(e), d = e - centre, distance = d < 0.0 ? -d : d;
          nearer[v] += distance < radius ? w : F64{};
          same[v] += distance == radius ? w : F64{};
        }
      }
    }
    return {fold(nearer), fold(same)};
  }

  // Keeps the tokens whose e is nearer to `centre` than `radius`.
  void cut_nearer(double scale, double centre, double radius) {
    cut([=, this](float best) { return centred(best) * scale - centre > -radius; },
        [=, this](float x, int64_t) { return std::abs(centred(x) * scale - centre) < radius; });
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
    whole = false;
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
  bool infinite;         // +inf counts as 0 and all else as -inf
  bool whole = true;     // nothing is dropped yet
  double whole_sum = 0;  // then, sum_exp2(kLog2e): a law of temperature 1 asks for it again
  float* z;              // [blocks * 64], -inf beyond V
  float* block_max;      // [blocks]
  float* work;           // [blocks]
  uint64_t* keys;        // [blocks * 64]
  uint64_t* spare;       // [blocks * 64]
};

}  // namespace pyspec::PYSPEC_ISA
