// SPDX-License-Identifier: Apache-2.0
// CPU tree_attention. The order of every sum is fixed by absolute position, so that a row's bits depend on
// what it sees alone (docs/ops/tree_attention.md): pairs of d, chunks of 256 positions and pairs of these.
// p = 0 is an exact no-op in these chains, so a block may be done for all rows of a tile together or for each
// node along its own path. Nothing that a row does not see is multiplied unless it is known to be finite.
#include "pyspec/tree_attention.h"

#include "cpu/kernel.h"
#include "cpu/rows.h"
#include "cpu/tree_attention_kv.h"
#include "cpu/tree_attention_tiles.h"

namespace pyspec::PYSPEC_ISA {
namespace {

using Plan = TreeAttentionPlan;
// Up to this many rows of a KV head, tiled operands are widened as they are multiplied; above, once for all.
#if defined(PYSPEC_ISA_AVX512)
template <DType kType>
constexpr int kDirectRows = kDots<kType> && kType == DType::kI8 ? 2 * kRows<Operand<kType>> : 512;
#else
template <DType kType>
constexpr int kDirectRows = 2 * kRows<Operand<kType>>;
#endif
constexpr int kRun = 4;       // blocks of values whose sums stay in registers
constexpr int kAhead = 8192;  // bytes between what is asked for and what is used: 4 to 16 KiB are alike

// Rows of one unit: their queries, scores, and results. Row (head * nodes + node) * R + h.
template <DType kType>
class Tile {
  using T = typename Element<kType>::T;
  using A = Operand<kType>;
  static constexpr bool kScaled = kType == DType::kI8;
  static constexpr DType kStagedType = kStaged<kType>;
  static constexpr int kKeyTiles = kCols<A>;

 public:
  Tile(const TreeAttentionParams& params, const Plan::Unit& unit)
      : p(params),
        u(unit),
        request(params.plan->requests[unit.request]),
        D(int(params.D)),
        R(int(params.H / params.G)),
        group(unit.nodes * R),
        rows(unit.heads * group),
        L(request.kv_len),
        kv(params, unit.request),
        softmax{p.scale, p.softcap, (p.softcap > 0 ? 1.0f : p.scale) * kLog2e},
        as_they_lie(params.kv_layout == KvLayout::kTiled &&
                    (kType == kStagedType || group <= kDirectRows<kType>)) {
    const int tail_tiles = request.chain ? 0 : request.nodes / kBlock + 2;
    uintptr_t at = 0;
    for (int pass = 0; pass < 2; ++pass) {  // the first pass measures
      const auto take = [&](auto*& pointer, size_t count) {
        pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(at);
        at += (count * sizeof *pointer + 63) & ~uintptr_t(63);
      };
      take(q, rows * D);
      take(scores, rows * kScoreStride);
      take(weights, kDots<kType> ? rows * kScoreStride : 0);
      take(keys, kKeyTiles * D * kBlock);
      take(values, kRun * kBlock * D);
      take(o, rows * D);
      take(m, rows);
      take(l, rows);
      take(acc, rows * D);
      take(acc_m, rows);
      take(acc_l, rows);
      take(tail, rows * tail_tiles * kBlock);
      take(low, u.nodes);
      take(high, u.nodes);
      take(path, request.chain ? 0 : u.nodes * kChunk);
      take(used, tail_tiles);
      if (pass == 0) at = reinterpret_cast<uintptr_t>(thread_scratch(at));
    }
    if constexpr (!kDots<kType>) weights = scores;
    for (int n = 0; n < u.nodes; ++n) {
      const int64_t t = request.t0 + u.node0 + n;
      high[n] = L + p.plan->depth[t] + 1;
      low[n] = p.plan->window ? int(std::max<int64_t>(0, high[n] - p.plan->window)) : 0;
    }
    low_min = *std::min_element(low, low + u.nodes);
    low_max = *std::max_element(low, low + u.nodes);
    high_min = *std::min_element(high, high + u.nodes);
    high_max = *std::max_element(high, high + u.nodes);
    kv.restrict(low_min, L + request.nodes);
    ahead = std::max(kRun, kAhead / int(u.heads * D * kBlock * sizeof(T))) * kBlock;
  }

  void run(const Plan::Item& item) {
    for (int r = 0; r < rows; ++r)
      for (int d = 0; d < D; d += kLanes)
        put<kType>(q + r * D + d, load_as(p.q, node_of(r) * p.q_stride_t + head_of(r) * D + d, p.q_dtype));
    std::fill(acc_l, acc_l + rows, 0.0f);
    const int first = std::max(item.chunk0 * kChunk, floor16(low_min)), last = item.chunk1 * kChunk;
    for (int k = first; k < first + ahead; k += kBlock)
      for (int g = u.g; g < u.g + u.heads; ++g) kv.fetch_keys(g, k);
    if (u.parts == 1) {
      for (int chunk = item.chunk0; chunk < item.chunk1; ++chunk) {
        attend(chunk * kChunk, last);
        softmax.merge(rows, D, m, l, o, acc_m, acc_l, acc);
      }
      finish();
      return;
    }
    const auto point = [&](int chunk) {
      m = p.workspace + u.partials + int64_t(chunk - u.chunk0) * rows * (D + 2);
      l = m + rows;
      o = l + rows;
    };
    for (int chunk = item.chunk0; chunk < item.chunk1; ++chunk) {
      point(chunk);
      attend(chunk * kChunk, last);
    }
    std::atomic<int32_t>& finished = p.plan->finished()[&u - p.plan->units.data()];
    if (finished.fetch_add(1, std::memory_order_acq_rel) + 1 < u.parts) return;
    finished.store(0, std::memory_order_relaxed);
    for (int chunk = u.chunk0; chunk < u.chunk0 + u.chunks; ++chunk) {
      point(chunk);
      softmax.merge(rows, D, m, l, o, acc_m, acc_l, acc);
    }
    finish();
  }

 private:
  int64_t node_of(int r) const { return request.t0 + u.node0 + r % group / R; }
  int64_t head_of(int r) const { return (u.g + r / group) * R + r % R; }

  // m, l and o of every row over the positions [c0, c0 + kChunk), of an item that ends at `last`; l = 0 where
  // a row sees nothing there. Keys, values and the keys of the next chunk are asked for one after the other.
  void attend(int c0, int last) {
    const int c1 = c0 + kChunk, begin = std::max(c0, floor16(low_min));
    const int keys_end = std::min(c1, request.chain ? high_max : L);
    for (int k = begin, count; k < keys_end; k += count * kBlock) {
      for (count = kKeyTiles; k + (count - 1) * kBlock >= keys_end;) count /= 2;
      for (int g = 0; g < u.heads; ++g) {
        for (int next = k + ahead; next < k + ahead + count * kBlock; next += kBlock)
          next < keys_end ? kv.fetch_keys(u.g + g, next)
                          : kv.fetch_values(u.g + g, begin + floor16(next - keys_end));
        float* to = scores + g * group * kScoreStride + (k - c0);
        score_run<kKeyTiles>(count, g, k, to);
      }
    }
    if (!request.chain && L < c1 && high_max > c0) score_paths(c0);
    int shared0 = std::max(c0, ceil16(low_max));
    int shared1 = std::min(c1, floor16(request.chain ? high_min : L));
    const int whole = floor16(request.chain ? high_max : L);  // up to here blocks have all their values
    if (request.chain && u.nodes > 1) {
      // The end, which not all rows see, is done for all of them too if nothing there can spoil a sum.
      const int end = std::min(c1, ceil16(high_max));
      shared1 = std::max(shared0, shared1);
      if (shared1 < end && finite(shared1, end)) shared1 = end;
    }
    if (shared0 >= shared1) shared0 = shared1 = c1;  // nothing that is done for all rows together
    for (int r = 0; r < rows; ++r) {
      const int n = r % group / R;
      float* s = scores + r * kScoreStride;
      const int from = std::max(low[n], c0) - c0, to = std::min(high[n], c1) - c0;
      if constexpr (kScaled) {  // weights when the scales of values are there
        softmax.row<DType::kI8>(s, s, from, to, shared0 - c0, shared1 - c0, m[r], l[r]);
      } else {
        A* w = weights + r * kScoreStride;
        softmax.row<kType>(s, w, from, to, shared0 - c0, shared1 - c0, m[r], l[r]);
      }
    }

    std::memset(o, 0, size_t(rows) * D * sizeof(float));
    for (int n = 0; n < u.nodes; ++n) add_values(n, c0, std::max(low[n], c0), std::min(high[n], shared0));
    // Values of f32 in pages that are not tiled may lie in them at one distance and in the copy at another.
    const int run = kType == DType::kF32 && !as_they_lie ? 1 : kRun;
    for (int k = shared0, count; k < shared1; k += count * kBlock) {
      count = k < whole ? std::min(run, (std::min(whole, shared1) - k) / kBlock) : 1;
      for (int g = 0; g < u.heads; ++g) {
        for (int next = k + ahead; next < k + ahead + count * kBlock; next += kBlock) {
          if (next < shared1) {
            kv.fetch_values(u.g + g, next);
          } else if (c1 < last) {
            kv.fetch_keys(u.g + g, c1 + next - shared1);
          }
        }
        A* w = weights + g * group * kScoreStride + (k - c0);
        float* to = o + g * group * D;
        if constexpr (kScaled)
          for (int i = 0; i < count; ++i) scale_weights(g, k + i * kBlock, request.chain ? high_max : L, c0);
        if (k < whole && as_they_lie) {
          const T* v[kRun];
          for (int i = 0; i < count; ++i) v[i] = kv.value_tile(u.g + g, k + i * kBlock);
          add_weighted<kType, kCols<A>>(group, w, v, D, count, kBlock, to, D);
        } else {
          int64_t stride;
          const A* v[kRun];
          for (int i = 0; i < count; ++i)
            v[i] = block_values(g, k + i * kBlock, values + i * kBlock * D, stride);
          add_weighted<kStagedType, kCols<A>>(group, w, v, stride, count, kBlock, to, D);
        }
      }
    }
    for (int n = 0; n < u.nodes; ++n) add_values(n, c0, std::max(low[n], shared1), std::min(high[n], c1));
  }

  // The same for a count of tiles of 16 that is kC, half of it, a quarter, ...
  template <int kC>
  void score_run(int count, int g, int slot0, float* to) {
    if (count == kC) return score<kC>(g, slot0, to, kScoreStride);
    if constexpr (kC > 1) score_run<kC / 2>(count, g, slot0, to);
  }

  // Scores of all rows of KV head g with the keys of slots [slot0, slot0 + 16 kC).
  template <int kC>
  void score(int g, int slot0, float* to, int64_t stride) {
    const A* from = q + g * group * D;
    if (as_they_lie) {
      const T* b[kC];
      for (int j = 0; j < kC; ++j) b[j] = kv.key_tile(u.g + g, slot0 + j * kBlock);
      score_tiles<kType, kC>(group, from, D, b, to, stride);
    } else {
      const A* b[kC];
      for (int j = 0; j < kC; ++j) b[j] = kv.keys(u.g + g, slot0 + j * kBlock, keys + j * D * kBlock);
      score_tiles<kStagedType, kC>(group, from, D, b, to, stride);
    }
    if constexpr (kScaled)
      for (int j = 0; j < kC; ++j) {
        const F32 scale = kv.scales(p.k_scale, u.g + g, slot0 + j * kBlock, slot0 + (j + 1) * kBlock);
        for (int r = 0; r < group; ++r) {
          float* s = to + r * stride + j * kBlock;
          store(s, load(s) * scale);
        }
      }
  }

  // Weights of positions [k, end) of a block are p times the scales of their values, those behind them 0.
  void scale_weights(int g, int k, int end, int c0) {
    const F32 scale = kv.scales(p.v_scale, u.g + g, k, end);
    for (int64_t r = g * group, at = r * kScoreStride + k - c0; r < (g + 1) * group; ++r, at += kScoreStride)
      put<kType>(weights + at, load(scores + at) * scale);
  }

  // Scores of the tree's own nodes: by tiles of slots that hold an ancestor of some row, then put where their
  // positions are.
  void score_paths(int c0) {
    const int base = floor16(L), tiles = (L + request.nodes - 1 - base) / kBlock + 1;
    std::fill(used, used + tiles, uint8_t(0));
    for (int n = 0; n < u.nodes; ++n) {
      int node = u.node0 + n;
      for (int at = high[n] - 1; at >= std::max({L, low[n], c0}); --at) {
        if (at < c0 + kChunk) {
          path[n * kChunk + at - c0] = L + node;
          used[(L + node - base) / kBlock] = 1;
        }
        node = p.plan->parents[request.t0 + node];
      }
    }
    const int stride = tiles * kBlock;
    for (int i = 0; i < tiles; ++i)
      for (int g = 0; used[i] && g < u.heads; ++g)
        score<1>(g, base + i * kBlock, tail + g * group * stride + i * kBlock, stride);
    for (int r = 0; r < rows; ++r) {
      const int n = r % group / R;
      for (int at = std::max({L, low[n], c0}); at < std::min(high[n], c0 + kChunk); ++at)
        scores[r * kScoreStride + at - c0] = tail[r * stride + path[n * kChunk + at - c0] - base];
    }
  }

  // Whether the values of a chain's positions [from, to) that exist are all finite: a weight of 0 then
  // changes nothing.
  bool finite(int from, int to) {
    I32 largest = iset1(0);
    const auto see = [&](F32 x) { largest = max(largest, bits(x) & iset1(0x7fffffff)); };
    for (int k = from; k < std::min(to, high_max); k += kBlock)
      for (int g = 0; g < u.heads; ++g) {
        if (kScaled) {
          see(kv.scales(p.v_scale, u.g + g, k, high_max));
        } else {
          int64_t stride;
          const A* v = block_values(g, k, values, stride);
          for (int i = 0; i < kBlock; i += 2)
            for (int d = 0; d < D; d += kLanes) {
              F32 even, odd;
              widen_rows<kStagedType>(v + i * stride + (kDots<kType> ? 2 * d : d), stride, even, odd);
              see(even), see(odd);
            }
        }
      }
    return reduce_max(largest) < 0x7f800000;
  }

  // The values of positions [k, k + kBlock) that all rows see, or of a chain: 0 where no row sees one.
  const A* block_values(int g, int k, A* to, int64_t& stride) {
    if (!request.chain || k + kBlock <= high_max) return kv.values(u.g + g, k, to, stride);
    stride = D;
    std::memset(to, 0, size_t(kBlock) * D * sizeof(A));
    for (int i = 0; i < high_max - k; ++i) kv.value(u.g + g, k + i, to, i);
    return to;
  }

  // o of node n's rows += p times the values at positions [from, to) along its own path.
  void add_values(int n, int c0, int from, int to) {
    for (int k = floor16(from); k < to; k += kBlock) {
      const int begin = std::max(from - k, 0), end = std::min(to - k, kBlock), even = begin & ~1;
      const int pairs = (end + 1) / 2 - even / 2;
      std::memset(values, 0, size_t(2 * pairs) * D * sizeof(A));  // also where only one of a pair is seen
      for (int g = 0; g < u.heads; ++g) {
        const int first = g * group + n * R;
        const int64_t at = int64_t(first) * kScoreStride + (k + even - c0);
        alignas(64) float scale[kBlock] = {};
        for (int i = begin; i < end; ++i) {
          const int slot = request.chain || k + i < L ? k + i : path[n * kChunk + k + i - c0];
          kv.value(u.g + g, slot, values, i - even);
          if constexpr (kScaled) scale[i] = kv.scale(p.v_scale, u.g + g, slot);
        }
        if constexpr (kScaled)
          for (int64_t h = 0, i = at - even; h < R; ++h, i += kScoreStride)
            put<kType>(weights + i, load(scores + i) * load(scale));
        const A* v[1] = {values};
        add_weighted<kStagedType, kCols<A>>(R, weights + at, v, D, 1, 2 * pairs, o + first * D, D);
      }
    }
  }

  void finish() {
    for (int r = 0; r < rows; ++r) {
      const int64_t row = node_of(r) * p.H + head_of(r);
      const F32 inverse =
          set1(1.0f / acc_l[r]);  // added to 0: the sign of a 0 would tell who else was summed
      for (int d = 0; d < D; d += kLanes)
        store_as(p.out, row * D + d, fma(load(acc + r * D + d), inverse, zero()), p.q_dtype);
      if (p.lse)
        p.lse[row] =
            float(double(acc_m[r]) * (p.softcap > 0 ? 1.0 : double(p.scale)) + std::log(double(acc_l[r])));
    }
  }

  const TreeAttentionParams& p;
  const Plan::Unit& u;
  const Plan::Request& request;
  const int D, R, group, rows, L;  // group: rows of one KV head
  KvReader<kType> kv;
  const Softmax softmax;
  const bool as_they_lie;                           // operands are multiplied as they lie in the cache
  int low_min, low_max, high_min, high_max, ahead;  // ahead: slots between what is asked for and what is used
  A *q, *weights, *keys, *values;
  float *scores, *o, *m, *l, *acc, *acc_m, *acc_l, *tail;
  int32_t *low, *high,
      *path;  // positions [low, high) that a node sees; slots of a tree's own positions in the chunk
  uint8_t* used;
};

template <DType kType>
void run_all(const TreeAttentionParams& p) {
  const auto run = [&](int64_t i) {
    const Plan::Item& item = p.plan->items[i];
    Tile<kType>(p, p.plan->units[item.unit]).run(item);
  };
  const int64_t items = int64_t(p.plan->items.size());
  if (p.plan->serial) {
    for (int64_t i = 0; i < items; ++i) run(i);
  } else {
    parallel_for(items, run);
  }
}

}  // namespace

void tree_attention(const TreeAttentionParams& p) {
  switch (p.kv_dtype) {
    case DType::kF32:
      return run_all<DType::kF32>(p);
    case DType::kBF16:
      return run_all<DType::kBF16>(p);
    case DType::kF16:
      return run_all<DType::kF16>(p);
    case DType::kI8:
      return run_all<DType::kI8>(p);
    case DType::kF8:
      break;  // refused by the binding
  }
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH_BF16(tree_attention, TreeAttentionParams)
