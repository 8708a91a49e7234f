// SPDX-License-Identifier: Apache-2.0
// CPU tree_attention. The order of every sum is fixed by absolute position, so that a row's bits depend on
// what it sees alone (docs/ops/tree_attention.md):
//   score   steps of 32 d: e = FMA chain over even d, o = over odd d, s += e + o       lanes: 16 keys
//   chunk   256 positions: m = max s, p = exp2(s c - m c), l in 16 lanes (position % 16), even and odd
//   vectors apart values  blocks of 16 positions: e = FMA chain over even positions, o = over odd ones, acc
//   += e + o    lanes: 16 d merge   chunks in order by one running rule, in line or from stored chunks
// p = 0 is an exact no-op in these chains, so a block may be done for all rows of a tile together or for each
// node along its own path. Blocks that some row of a tile does not see whole go by node: nothing invisible is
// ever multiplied.
#include "pyspec/tree_attention.h"

#include "cpu/kernel.h"
#include "cpu/rows.h"
#include "cpu/tree_attention_kv.h"
#include "cpu/tree_attention_tiles.h"

namespace pyspec::PYSPEC_ISA {
namespace {

using Plan = TreeAttentionPlan;

// Rows of one unit: their queries, scores, and results.
template <DType kType>
class Tile {
 public:
  Tile(const TreeAttentionParams& params, const Plan::Unit& unit)
      : p(params),
        u(unit),
        request(params.plan->requests[unit.request]),
        D(int(params.D)),
        R(int(params.H / params.G)),
        rows(unit.nodes * R),
        L(request.kv_len),
        kv(params, unit.request, unit.g) {
    const int tail_tiles = request.nodes / kBlock + 2;
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
      take(tail, rows * kBlock);
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
  }

  void run(const Plan::Item& item) {
    for (int n = 0; n < u.nodes; ++n)
      for (int h = 0; h < R; ++h)
        for (int d = 0; d < D; d += kLanes)
          store(q + (n * R + h) * D + d,
                load_as(p.q, (request.t0 + u.node0 + n) * p.q_stride_t + (u.g * R + h) * D + d, p.q_dtype));
    std::fill(acc_l, acc_l + rows, 0.0f);
    if (u.parts == 1) {
      for (int chunk = item.chunk0; chunk < item.chunk1; ++chunk) {
        attend(chunk * kChunk);
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
      attend(chunk * kChunk);
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
  // m, l and o of every row over the positions [c0, c0 + kChunk); l = 0 where a row sees nothing there.
  void attend(int c0) {
    const int c1 = c0 + kChunk, keys_end = std::min(c1, request.chain ? high_max : L);
    for (int k = std::max(c0, floor16(low_min)); k < keys_end;) {
      const float* b[2] = {kv.keys(k, keys), nullptr};
      if (kCols == 2 && k + kBlock < keys_end) {
        b[1] = kv.keys(k + kBlock, keys + D * kBlock);
        multiply<kCols>(rows, q, D, b, kBlock, D, kStep, scores + (k - c0), kScoreStride, false);
        k += 2 * kBlock;
      } else {
        multiply<1>(rows, q, D, b, kBlock, D, kStep, scores + (k - c0), kScoreStride, false);
        k += kBlock;
      }
    }
    if (!request.chain && L < c1 && high_max > c0) score_paths(c0);
    for (int n = 0; n < u.nodes; ++n)
      for (int h = 0; h < R; ++h) softmax(n * R + h, std::max(low[n], c0) - c0, std::min(high[n], c1) - c0);

    std::memset(o, 0, size_t(rows) * D * sizeof(float));
    int shared0 = std::max(c0, ceil16(low_max));
    int shared1 = std::min(c1, floor16(request.chain ? high_min : L));
    if (shared0 >= shared1) shared0 = shared1 = c1;  // nothing that all rows see whole
    for (int n = 0; n < u.nodes; ++n) add_values(n, c0, std::max(low[n], c0), std::min(high[n], shared0));
    for (int k = shared0; k < shared1; k += kBlock) {
      int64_t stride = D;
      const float* v = kv.values(k, values, stride);
      multiply_values(rows, scores + (k - c0), v, stride, kBlock, o);
    }
    for (int n = 0; n < u.nodes; ++n) add_values(n, c0, std::max(low[n], shared1), std::min(high[n], c1));
  }

  // Scores of the tree's own nodes: by tiles of slots that hold an ancestor of some row, put where their
  // position is.
  void score_paths(int c0) {
    const int base = L / kBlock, tiles = (L + request.nodes - 1) / kBlock - base + 1;
    std::fill(used, used + tiles, uint8_t(0));
    for (int n = 0; n < u.nodes; ++n) {
      int node = u.node0 + n;
      for (int at = high[n] - 1; at >= std::max({L, low[n], c0}); --at) {
        if (at < c0 + kChunk) {
          path[n * kChunk + at - c0] = L + node;
          used[(L + node) / kBlock - base] = 1;
        }
        node = p.plan->parents[request.t0 + node];
      }
    }
    for (int i = 0; i < tiles; ++i) {
      if (!used[i]) continue;
      const int slot0 = (base + i) * kBlock;
      const float* b = kv.keys(slot0, keys);
      multiply<1>(rows, q, D, &b, kBlock, D, kStep, tail, kBlock, false);
      for (int n = 0; n < u.nodes; ++n)
        for (int at = std::max({L, low[n], c0}); at < std::min(high[n], c0 + kChunk); ++at)
          if (const int lane = path[n * kChunk + at - c0] - slot0; lane >= 0 && lane < kBlock)
            for (int r = n * R; r < (n + 1) * R; ++r)
              scores[r * kScoreStride + at - c0] = tail[r * kBlock + lane];
    }
  }

  // Scores of row r at [from, to) of the chunk become p, all others of their vectors 0; sets m[r] and l[r].
  void softmax(int r, int from, int to) {
    m[r] = l[r] = 0.0f;
    if (from >= to) return;
    float* s = scores + r * kScoreStride;
    const int begin = floor16(from), end = ceil16(to);
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
    F32 sum[2] = {zero(), zero()};
    for (int i = begin; i < end; i += kLanes) {
      const F32 x = exp2(fma(load(s + i), c, minus));
      store(s + i, x);
      sum[i / kLanes % 2] = sum[i / kLanes % 2] + x;
    }
    l[r] = reduce_add(sum[0] + sum[1]);
  }

  // o of node n's rows += p times the values at positions [from, to) along its own path.
  void add_values(int n, int c0, int from, int to) {
    for (int k = floor16(from); k < to; k += kBlock) {
      const int begin = std::max(from - k, 0), end = std::min(to - k, kBlock), even = begin & ~1;
      const int pairs_end = (end + 1) & ~1;
      if (even < begin) std::memset(values + even * D, 0, D * sizeof(float));  // its p is 0
      if (end < pairs_end) std::memset(values + end * D, 0, D * sizeof(float));
      for (int i = begin; i < end; ++i) {
        const int at = k + i;
        kv.value(request.chain || at < L ? at : path[n * kChunk + at - c0], values + i * D);
      }
      multiply_values(R, scores + n * R * kScoreStride + (k - c0) + even, values + even * D, D,
                      pairs_end - even, o + n * R * D);
    }
  }

  void multiply_values(int count, const float* weights, const float* v, int64_t stride, int n, float* to) {
    int d = 0;
    for (; kCols == 2 && d + 2 * kLanes <= D; d += 2 * kLanes) {
      const float* b[2] = {v + d, v + d + kLanes};
      multiply<kCols>(count, weights, kScoreStride, b, stride, n, kBlock, to + d, D, true);
    }
    for (; d < D; d += kLanes) {
      const float* b = v + d;
      multiply<1>(count, weights, kScoreStride, &b, stride, n, kBlock, to + d, D, true);
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
      const int64_t row = (request.t0 + u.node0 + r / R) * p.H + u.g * R + r % R;
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
  const int D, R, rows, L;
  KvReader<kType> kv;
  int low_min, low_max, high_min, high_max;
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
  }
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(tree_attention, TreeAttentionParams)
