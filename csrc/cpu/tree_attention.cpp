// SPDX-License-Identifier: Apache-2.0
// CPU tree_attention. The order of every sum is fixed by absolute position, so that a row's bits depend on
// what it sees alone (docs/ops/tree_attention.md): steps of 32 d, blocks of 16 positions, chunks of 256.
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
constexpr int kDirectRows = 512;  // always: units for integers and for FMAs work side by side
#else
constexpr int kDirectRows = 2 * kRows;
#endif
constexpr int kAhead = 8192;  // bytes between what is asked for and what is used: 4 to 16 KiB are alike

// Rows of one unit: their queries, scores, and results. Row (head * nodes + node) * R + h.
template <DType kType>
class Tile {
  using T = typename Element<kType>::T;
  static constexpr bool kScaled = kType == DType::kI8;

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
        as_they_lie(params.kv_layout == KvLayout::kTiled && (kType == DType::kF32 || group <= kDirectRows)) {
    const int tail_tiles = request.chain ? 0 : request.nodes / kBlock + 2;
    uintptr_t at = 0;
    for (int pass = 0; pass < 2; ++pass) {  // the first pass measures
      const auto take = [&](auto*& pointer, size_t count) {
        pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(at);
        at += (count * sizeof *pointer + 63) & ~uintptr_t(63);
      };
      take(q, rows * D);
      take(scores, rows * kScoreStride);
      take(keys, kCols * D * kBlock);
      take(values, kBlock * D);
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
    softmax_scale = (p.softcap > 0 ? 1.0f : p.scale) * kLog2e;
    ahead = std::max(1, kAhead / int(u.heads * D * kBlock * sizeof(T))) * kBlock;
  }

  void run(const Plan::Item& item) {
    for (int r = 0; r < rows; ++r)
      for (int d = 0; d < D; d += kLanes)
        store(q + r * D + d, load_as(p.q, node_of(r) * p.q_stride_t + head_of(r) * D + d, p.q_dtype));
    std::fill(acc_l, acc_l + rows, 0.0f);
    const int first = std::max(item.chunk0 * kChunk, floor16(low_min)), last = item.chunk1 * kChunk;
    for (int k = first; k < first + ahead; k += kBlock)
      for (int g = u.g; g < u.g + u.heads; ++g) kv.fetch_keys(g, k);
    if (u.parts == 1) {
      for (int chunk = item.chunk0; chunk < item.chunk1; ++chunk) {
        attend(chunk * kChunk, last);
        merge();
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
      merge();
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
      count = kCols == 2 && k + kBlock < keys_end ? 2 : 1;
      for (int g = 0; g < u.heads; ++g) {
        for (int next = k + ahead; next < k + ahead + count * kBlock; next += kBlock)
          next < keys_end ? kv.fetch_keys(u.g + g, next)
                          : kv.fetch_values(u.g + g, begin + floor16(next - keys_end));
        float* to = scores + g * group * kScoreStride + (k - c0);
        count == 2 ? score<kCols>(g, k, to, kScoreStride) : score<1>(g, k, to, kScoreStride);
      }
    }
    if (!request.chain && L < c1 && high_max > c0) score_paths(c0);
    int shared0 = std::max(c0, ceil16(low_max));
    int shared1 = std::min(c1, floor16(request.chain ? high_min : L));
    const int whole = shared1;  // up to here every row sees every position
    if (request.chain && u.nodes > 1) {
      // The end, which not all rows see, is done for all of them too if nothing there can spoil a sum.
      const int end = std::min(c1, ceil16(high_max));
      shared1 = std::max(shared0, shared1);
      if (shared1 < end && finite(shared1, end)) shared1 = end;
    }
    if (shared0 >= shared1) shared0 = shared1 = c1;  // nothing that is done for all rows together
    for (int r = 0; r < rows; ++r) {
      const int n = r % group / R;
      softmax(r, std::max(low[n], c0) - c0, std::min(high[n], c1) - c0, shared0 - c0, shared1 - c0);
    }

    std::memset(o, 0, size_t(rows) * D * sizeof(float));
    for (int n = 0; n < u.nodes; ++n) add_values(n, c0, std::max(low[n], c0), std::min(high[n], shared0));
    for (int k = shared0; k < shared1; k += kBlock)
      for (int g = 0; g < u.heads; ++g) {
        if (k + ahead < shared1) {
          kv.fetch_values(u.g + g, k + ahead);
        } else if (c1 < last) {
          kv.fetch_keys(u.g + g, c1 + k + ahead - shared1);
        }
        float *weights = scores + g * group * kScoreStride + (k - c0), *to = o + g * group * D;
        int64_t stride = D;
        if (kScaled) scale_weights(g, k, k + kBlock > whole ? high_max : k + kBlock, weights);
        if (k + kBlock > whole) {
          stage_end(g, k);
          add_weighted<DType::kF32>(group, weights, values, D, kBlock, to, D);
        } else if (as_they_lie) {
          add_weighted<kType>(group, weights, kv.value_tile(u.g + g, k), D, kBlock, to, D);
        } else {
          const float* v = kv.values(u.g + g, k, values, stride);
          add_weighted<DType::kF32>(group, weights, v, stride, kBlock, to, D);
        }
      }
    for (int n = 0; n < u.nodes; ++n) add_values(n, c0, std::max(low[n], shared1), std::min(high[n], c1));
  }

  // Scores of all rows of KV head g with the keys of slots [slot0, slot0 + 16 kC).
  template <int kC>
  void score(int g, int slot0, float* to, int64_t stride) {
    const float* from = q + g * group * D;
    if (as_they_lie) {
      const T* b[kC];
      for (int j = 0; j < kC; ++j) b[j] = kv.key_tile(u.g + g, slot0 + j * kBlock);
      multiply<kType, kC>(group, from, D, b, kBlock, D, kStep, to, stride, false);
    } else {
      const float* b[kC];
      for (int j = 0; j < kC; ++j) b[j] = kv.keys(u.g + g, slot0 + j * kBlock, keys + j * D * kBlock);
      multiply<DType::kF32, kC>(group, from, D, b, kBlock, D, kStep, to, stride, false);
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

  // Weights of positions [k, end) times the scales of their values, those behind them times 0.
  void scale_weights(int g, int k, int end, float* weights) {
    const F32 scale = kv.scales(p.v_scale, u.g + g, k, end);
    for (int r = 0; r < group; ++r, weights += kScoreStride) store(weights, load(weights) * scale);
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
          stage_end(g, k);
          for (int i = 0; i < kBlock * D; i += kLanes) see(load(values + i));
        }
      }
    return reduce_max(largest) < 0x7f800000;
  }

  // The values of positions [k, k + kBlock) of a chain, 0 where no row sees one.
  void stage_end(int g, int k) {
    for (int i = 0; i < kBlock; ++i)
      if (k + i < high_max) {
        kv.value(u.g + g, k + i, values + i * D);
      } else {
        std::memset(values + i * D, 0, size_t(D) * sizeof(float));
      }
  }

  // Scores of row r at [from, to) of the chunk become p, all others of their vectors and of [shared0,
  // shared1) 0; sets m[r] and l[r].
  void softmax(int r, int from, int to, int shared0, int shared1) {
    m[r] = l[r] = 0.0f;
    float* s = scores + r * kScoreStride;
    if (from >= to) {
      std::fill(s + shared0, s + shared1, 0.0f);
      return;
    }
    const int begin = floor16(from), end = ceil16(to);
    if (end < shared1) std::fill(s + end, s + shared1, 0.0f);
    const float hidden = -std::numeric_limits<float>::infinity();
    if (p.softcap > 0) {
      const F32 in = set1(p.scale / p.softcap), cap = set1(p.softcap);
      for (int i = begin; i < end; i += kLanes) store(s + i, cap * tanh(load(s + i) * in));
    }
    std::fill(s + begin, s + from, hidden);
    std::fill(s + to, s + end, hidden);
    F32 largest = set1(hidden);
    for (int i = begin; i < end; i += kLanes) largest = max(largest, load(s + i));
    m[r] = reduce_max(largest);
    const F32 c = set1(softmax_scale), minus = set1(-m[r] * softmax_scale);
    const auto weigh = [&](int i) {
      const F32 x = exp2(fma(load(s + i), c, minus));
      store(s + i, x);
      return x;
    };
    F32 even = zero(), odd = zero();
    int i = begin;
    if (i / kLanes % 2) odd = weigh(i), i += kLanes;
    for (; i + kLanes < end; i += 2 * kLanes) {
      even = even + weigh(i);
      odd = odd + weigh(i + kLanes);
    }
    if (i < end) even = even + weigh(i);
    l[r] = reduce_add(even + odd);
  }

  // o of node n's rows += p times the values at positions [from, to) along its own path.
  void add_values(int n, int c0, int from, int to) {
    for (int k = floor16(from); k < to; k += kBlock) {
      const int begin = std::max(from - k, 0), end = std::min(to - k, kBlock), even = begin & ~1;
      const int pairs_end = (end + 1) & ~1;
      if (even < begin) std::memset(values + even * D, 0, D * sizeof(float));  // its p is 0
      if (end < pairs_end) std::memset(values + end * D, 0, D * sizeof(float));
      for (int g = 0; g < u.heads; ++g) {
        const int first = g * group + n * R;
        float* weights = scores + first * kScoreStride + (k - c0);
        for (int i = begin; i < end; ++i) {
          const int at = k + i, slot = request.chain || at < L ? at : path[n * kChunk + at - c0];
          kv.value(u.g + g, slot, values + i * D);
          if constexpr (kScaled)
            for (int h = 0; h < R; ++h) weights[h * kScoreStride + i] *= kv.scale(p.v_scale, u.g + g, slot);
        }
        add_weighted<DType::kF32>(R, weights + even, values + even * D, D, pairs_end - even, o + first * D,
                                  D);
      }
    }
  }

  // The running merge of one more chunk.
  void merge() {
    for (int r = 0; r < rows; ++r) {
      if (l[r] == 0.0f) continue;
      float* sum = acc + r * D;
      const float* add = o + r * D;
      if (acc_l[r] == 0.0f) {
        std::memcpy(sum, add, D * sizeof(float));
        acc_m[r] = m[r];
        acc_l[r] = l[r];
        continue;
      }
      const float top = std::max(acc_m[r], m[r]);
      const float a = exp2_scalar((acc_m[r] - top) * softmax_scale),
                  b = exp2_scalar((m[r] - top) * softmax_scale);
      acc_l[r] = __builtin_fmaf(l[r], b, acc_l[r] * a);
      acc_m[r] = top;
      const F32 va = set1(a), vb = set1(b);
      for (int d = 0; d < D; d += kLanes) store(sum + d, fma(load(add + d), vb, load(sum + d) * va));
    }
  }

  void finish() {
    for (int r = 0; r < rows; ++r) {
      const int64_t row = node_of(r) * p.H + head_of(r);
      const F32 inverse = set1(1.0f / acc_l[r]);
      for (int d = 0; d < D; d += kLanes)
        store_as(p.out, row * D + d, load(acc + r * D + d) * inverse, p.q_dtype);
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
  const bool as_they_lie;                           // operands are multiplied as they lie in the cache
  int low_min, low_max, high_min, high_max, ahead;  // ahead: slots between what is asked for and what is used
  float softmax_scale;  // of the exponent: log2(e), times scale unless the scores were capped
  float *q, *scores, *keys, *values, *o, *m, *l, *acc, *acc_m, *acc_l, *tail;
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

PYSPEC_DISPATCH(tree_attention, TreeAttentionParams)
