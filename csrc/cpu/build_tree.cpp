// SPDX-License-Identifier: Apache-2.0
// CPU build_tree. The noise of a position is made once per request, in lanes; then one item is one frontier
// node: it sums its row, and scores exactly the few tokens whose weight says that they may be among the best.
#include "pyspec/build_tree.h"

#include "cpu/kernel.h"
#include "cpu/noise.h"

namespace pyspec::PYSPEC_ISA {
namespace {

constexpr int64_t kBlock = 64, kChunk = 1024;
constexpr int kSumLanes = 32;
constexpr float kLowest = -std::numeric_limits<float>::infinity(), kGreedyBelow = 0x1p-16f;
constexpr double kLeastExact =
    0x1p-900;  // weights below may be those of clamped exponents, which do not order

struct Child {
  float score;
  int32_t column;
};
static_assert(sizeof(Child) == sizeof(int64_t));

bool before(const Child& a, const Child& b) {
  return a.score > b.score || (a.score == b.score && a.column < b.column);
}

int64_t padded(int64_t vocab) { return (vocab + kBlock - 1) / kBlock * kBlock; }

float cleaned(float x) { return std::fabs(x) < 0x1p-126f ? 0.0f : x == x ? x : kLowest; }

// E = exp(-noise) of the columns begin .. end; the last ones of a row stand for no token.
void make_noise(const BuildTreeParams& p, int64_t b, int64_t begin, int64_t end) {
  const Noise noise(p.seed[b], p.stream[b], p.position[b]);
  double* to = p.noise + b * padded(p.V);
  const auto put = [&](int64_t column, U64 word) {
    const F64 r = bit_cast<F64>(word + bit_cast<uint64_t>(0x1p52)) - 0x1p52;
    const F64 e = -log_positive(1.0 - (r + 0.5) * 0x1p-32);
    std::memcpy(to + column, &e, sizeof e);
  };
  if (!p.ids) {
    for (int64_t i = begin; i < end; i += Noise::kTokens) {
      const Noise::Words words = noise.words(i);  // word w of lane j is that of token i + 4 j + w
      for (int j = 0; j < Noise::kTokens; j += kWide) {
        U64 word;
        for (int n = 0; n < kWide; ++n) word[n] = words.w[(j + n) % 4][(j + n) / 4];
        put(i + j, word);
      }
    }
    return;
  }
  for (int64_t i = begin; i < end; i += kWide) {
    U64 token, word;
    for (int n = 0; n < kWide; ++n) token[n] = uint64_t(i + n < p.V ? p.ids[i + n] : 0);
    const Noise::Words words = noise.words_of(token / 4);
    for (int n = 0; n < kWide; ++n) word[n] = words.w[token[n] % 4][n];
    put(i, word);
  }
}

// The best children of frontier node t of request b, in order; returns how many there are.
int64_t best_children(const BuildTreeParams& p, int64_t t, int64_t b, int64_t count, Child* best) {
  const double node_score = double(p.node_score[t]);
  if (!std::isfinite(node_score)) return 0;
  const int64_t size = padded(p.V), blocks = size / kBlock;
  auto* weight = static_cast<double*>(thread_scratch(size_t(size + blocks) * 16 + size_t(size) * 12));
  double *heaviest = weight + size, *work = heaviest + blocks;  // of each block; memory for a selection
  auto* children = reinterpret_cast<Child*>(work + size + blocks);
  auto* z = reinterpret_cast<float*>(children + size);
  const float* logits = p.logits + t * p.logits_stride_t;
  float most = kLowest;
  for (int64_t i = 0; i < size; ++i) {
    z[i] = i < p.V ? cleaned(logits[i]) : kLowest;
    most = std::max(most, z[i]);
  }
  if (most == kLowest) return 0;
  if (most == -kLowest) {  // +inf is all that can be drawn
    for (int64_t i = 0; i < size; ++i) z[i] = z[i] == most ? 0.0f : kLowest;
    most = 0;
  }
  const bool greedy = p.temperature[b] < kGreedyBelow, noisy = p.shared_noise && !greedy;
  const double inv_t = greedy ? 1.0 : 1.0 / double(p.temperature[b]), scale = kLog2e * inv_t;
  const double* noise = noisy ? p.noise + b * size : nullptr;
  F64 sums[kSumLanes / kWide] = {};
  for (int64_t block = 0; block < blocks; ++block) {
    F64 top{};
    for (int64_t i = block * kBlock; i < (block + 1) * kBlock; i += kSumLanes) {
      for (int v = 0; v < kSumLanes / kWide; ++v) {
        const int64_t at = i + v * kWide;
        F64 w = exp2_negative<F64, U64>((widen(z + at) - double(most)) * scale);
        if (noisy) {
          F64 e;
          std::memcpy(&e, noise + at, sizeof e);
          w = w / e;
        }
        sums[v] += w;  // padding weighs 2^-1000: nothing beside the best token
        top = w > top ? w : top;
        std::memcpy(weight + at, &w, sizeof w);
      }
    }
    heaviest[block] = top[0];
    for (int i = 1; i < kWide; ++i) heaviest[block] = std::max(heaviest[block], top[i]);
  }
  double lane[kSumLanes];
  std::memcpy(lane, sums, sizeof lane);
  for (int half = kSumLanes / 2; half; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  const double log_sum = log_positive(lane[0]);

  // The count-th largest weight, or a bound below it: so many blocks reach their count-th largest maximum.
  const bool by_block = count <= blocks;
  std::memcpy(work, by_block ? heaviest : weight, size_t(by_block ? blocks : p.V) * sizeof *work);
  std::nth_element(work, work + count - 1, work + (by_block ? blocks : p.V),
                   [](double x, double y) { return x > y; });
  double floor = work[count - 1];
  // Scores that round to one float32 are in the order of tokens: what may round to this one comes along.
  const double rounding = 0x1p-21 * (std::fabs(node_score) + std::fabs(log_positive(floor) - log_sum) + 1);
  floor = floor < kLeastExact || rounding >= 1 ? 0 : floor * (1 - rounding);
  int64_t found = 0;
  for (int64_t block = 0; block < blocks; ++block) {
    if (heaviest[block] < floor) continue;
    for (int64_t i = block * kBlock; i < std::min(p.V, (block + 1) * kBlock); ++i) {
      if (weight[i] < floor) continue;
      const double d = (double(z[i]) - double(most)) * inv_t;
      const double u = noisy ? d - log_positive(noise[i]) : d;
      const float score = float(node_score + (u - log_sum));
      if (score > kLowest) children[found++] = {score, int32_t(i)};
    }
  }
  count = std::min(count, found);
  std::partial_sort(children, children + count, children + found, before);
  std::copy_n(children, count, best);
  return count;
}

// Merges the lists of a request's nodes: an entry's place in them orders by parent, then by token.
void merge(const BuildTreeParams& p, int64_t b, int64_t per_node) {
  const int64_t begin = p.cu_t[b] * per_node, entries = p.cu_t[b + 1] * per_node - begin;
  const auto* nodes = reinterpret_cast<const Child*>(p.node_best) + begin;
  auto* children = static_cast<Child*>(thread_scratch(size_t(entries) * sizeof(Child) + 1));
  int64_t found = 0;
  for (int64_t i = 0; i < entries; ++i)
    if (nodes[i].score > kLowest) children[found++] = {nodes[i].score, int32_t(i)};
  const int64_t count = std::min(found, p.width);
  std::partial_sort(children, children + count, children + found, before);
  for (int64_t i = 0; i < p.width; ++i) {
    const int64_t to = b * p.width + i;
    if (i >= count) {
      p.token[to] = p.parent[to] = -1;
      p.score[to] = kLowest;
      continue;
    }
    const int32_t column = nodes[children[i].column].column;
    p.token[to] = p.ids ? p.ids[column] : column;
    p.parent[to] = int32_t(children[i].column / per_node);
    p.score[to] = children[i].score;
  }
}

}  // namespace

void build_tree(const BuildTreeParams& p) {
  const int64_t per_node = std::min(p.width, p.V), size = padded(p.V), chunks = (size + kChunk - 1) / kChunk;
  if (p.shared_noise) {
    parallel_for(p.B * chunks, [&](int64_t i) {
      const int64_t b = i / chunks, begin = i % chunks * kChunk;
      if (p.temperature[b] >= kGreedyBelow && p.cu_t[b] < p.cu_t[b + 1])
        make_noise(p, b, begin, std::min(size, begin + kChunk));
    });
  }
  parallel_for(p.T, [&](int64_t t) {
    const int64_t b = std::upper_bound(p.cu_t, p.cu_t + p.B, t) - p.cu_t - 1;
    auto* best = reinterpret_cast<Child*>(p.node_best) + t * per_node;
    const int64_t found = best_children(p, t, b, per_node, best);
    std::fill(best + found, best + per_node, Child{kLowest, 0});
  });
  for (int64_t b = 0; b < p.B; ++b) merge(p, b, per_node);
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(build_tree, BuildTreeParams)
