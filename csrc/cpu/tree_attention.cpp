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

namespace pyspec::PYSPEC_ISA {
namespace {

using Plan = TreeAttentionPlan;

constexpr int kChunk = 256, kBlock = 16, kStep = 32;
constexpr int kScoreStride = kChunk + kBlock;  // floats; not a power of two: rows must not share L1 sets
constexpr float kLog2e = 1.4426950408889634f;
// tanh(x) = x + x z P(z) for z = x^2 <= 1/4: least squares at Chebyshev nodes, relative error 2e-9 before
// rounding.
constexpr float kTanh[5] = {-3.3333332809e-01f, 1.3333227376e-01f, -5.3933787266e-02f, 2.1472710399e-02f,
                            -6.9469843077e-03f};
#if defined(PYSPEC_ISA_AVX512)
constexpr int kRows = 4, kCols = 2;  // 4 x 2 x (even, odd): 16 of 32 registers, 16 FMAs in flight
#else
constexpr int kRows = 2, kCols = 1;
#endif

inline int floor16(int x) { return x & ~15; }
inline int ceil16(int x) { return (x + 15) & ~15; }

template <DType kType>
struct Element {
  using T = uint16_t;
};
template <>
struct Element<DType::kF32> {
  using T = float;
};
template <DType kType>
inline F32 widen(const typename Element<kType>::T* p) {
  if constexpr (kType == DType::kF32) return load(p);
  if constexpr (kType == DType::kBF16) return load_bf16(p);
  if constexpr (kType == DType::kF16) return load_f16(p);
}
template <DType kType>
inline void widen_pairs(const uint16_t* p, F32& even, F32& odd) {
  kType == DType::kBF16 ? load_bf16_pairs(p, even, odd) : load_f16_pairs(p, even, odd);
}

// c[r][16 col + lane] (+)= sum over k < n of a[r][k] * b[col][k][lane], in steps: s += e + o.
template <int kR, int kC>
inline void multiply_tile(const float* a, int64_t a_stride, const float* const* b, int64_t b_stride, int n,
                          int step, float* c, int64_t c_stride, bool add) {
  for (int k0 = 0; k0 < n; k0 += step, add = true) {
    F32 even[kR][kC], odd[kR][kC];
    for (int r = 0; r < kR; ++r)
      for (int j = 0; j < kC; ++j) even[r][j] = odd[r][j] = zero();
    const int k1 = k0 + step < n ? k0 + step : n;
    for (int k = k0; k < k1; k += 2) {
      F32 be[kC], bo[kC];
      for (int j = 0; j < kC; ++j) {
        be[j] = load(b[j] + k * b_stride);
        bo[j] = load(b[j] + (k + 1) * b_stride);
      }
      for (int r = 0; r < kR; ++r) {
        const F32 ae = set1(a[r * a_stride + k]), ao = set1(a[r * a_stride + k + 1]);
        for (int j = 0; j < kC; ++j) {
          even[r][j] = fma(ae, be[j], even[r][j]);
          odd[r][j] = fma(ao, bo[j], odd[r][j]);
        }
      }
    }
    for (int r = 0; r < kR; ++r)
      for (int j = 0; j < kC; ++j) {
        float* to = c + r * c_stride + j * kLanes;
        const F32 sum = even[r][j] + odd[r][j];
        store(to, add ? load(to) + sum : sum);
      }
  }
}

template <int kC>
void multiply(int rows, const float* a, int64_t a_stride, const float* const* b, int64_t b_stride, int n,
              int step, float* c, int64_t c_stride, bool add) {
  for (; rows >= kRows; rows -= kRows, a += kRows * a_stride, c += kRows * c_stride)
    multiply_tile<kRows, kC>(a, a_stride, b, b_stride, n, step, c, c_stride, add);
  if (kRows > 3 && rows == 3) multiply_tile<3, kC>(a, a_stride, b, b_stride, n, step, c, c_stride, add);
  if (kRows > 2 && rows == 2) multiply_tile<2, kC>(a, a_stride, b, b_stride, n, step, c, c_stride, add);
  if (rows == 1) multiply_tile<1, kC>(a, a_stride, b, b_stride, n, step, c, c_stride, add);
}

inline void transpose(I32 (&rows)[16]) {
#if defined(PYSPEC_ISA_AVX512)
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(rows[i].v, rows[i + 1].v);
    t[i + 1] = _mm512_unpackhi_epi32(rows[i].v, rows[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4)
    for (int j = 0; j < 2; ++j) {
      rows[i + 2 * j].v = _mm512_unpacklo_epi64(t[i + j], t[i + j + 2]);
      rows[i + 2 * j + 1].v = _mm512_unpackhi_epi64(t[i + j], t[i + j + 2]);
    }
  for (int j = 0; j < 4;
       ++j) {  // rows[4 i + j]: quarter columns of four rows; now 128-bit quarters change places
    const __m512i ab = _mm512_shuffle_i32x4(rows[j].v, rows[4 + j].v, 0x88);
    const __m512i cd = _mm512_shuffle_i32x4(rows[8 + j].v, rows[12 + j].v, 0x88);
    const __m512i ef = _mm512_shuffle_i32x4(rows[j].v, rows[4 + j].v, 0xdd);
    const __m512i gh = _mm512_shuffle_i32x4(rows[8 + j].v, rows[12 + j].v, 0xdd);
    t[j] = _mm512_shuffle_i32x4(ab, cd, 0x88);
    t[8 + j] = _mm512_shuffle_i32x4(ab, cd, 0xdd);
    t[4 + j] = _mm512_shuffle_i32x4(ef, gh, 0x88);
    t[12 + j] = _mm512_shuffle_i32x4(ef, gh, 0xdd);
  }
  for (int i = 0; i < 16; ++i) rows[i].v = t[i];
#else
  alignas(64) int32_t from[16][16], to[16][16];
  for (int i = 0; i < 16; ++i) istore(from[i], rows[i]);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 16; ++j) to[i][j] = from[j][i];
  for (int i = 0; i < 16; ++i) rows[i] = iload(to[i]);
#endif
}

// tanh by exp2 beyond 1/2 and an odd polynomial of degree 11 within (relative error 3e-7).
inline F32 tanh(F32 x) {
  const F32 size = abs(x), t = exp2(size * set1(-2.0f * kLog2e)), z = x * x;
  const F32 large = (set1(1.0f) - t) / (set1(1.0f) + t);
  F32 p = set1(kTanh[4]);
  for (int i = 3; i >= 0; --i) p = fma(p, z, set1(kTanh[i]));
  const F32 small = fma(p * z, size, size), half = set1(0.5f);
  const F32 magnitude = keep_ge(size, half, large) + (small - keep_ge(size, half, small));
  return from_bits(bits(magnitude) + (bits(x) & iset1(int32_t(0x80000000))));
}

inline float exp2_scalar(float x) {
  alignas(64) float lanes[kLanes];
  store(lanes, exp2(set1(x)));
  return lanes[0];
}

// Rows of one unit: their queries, scores, and results.
template <DType kType>
class Tile {
  using T = typename Element<kType>::T;

 public:
  Tile(const TreeAttentionParams& params, const Plan::Unit& unit)
      : p(params),
        u(unit),
        request(params.plan->requests[unit.request]),
        D(int(params.D)),
        S(int(params.S)),
        R(int(params.H / params.G)),
        rows(unit.nodes * R),
        L(request.kv_len),
        slots_end(L + request.nodes),
        table(params.page_table + unit.request * params.W) {
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
    first_slot = low_min;
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
      const float* b[2] = {stage_keys(k, keys), nullptr};
      if (kCols == 2 && k + kBlock < keys_end) {
        b[1] = stage_keys(k + kBlock, keys + D * kBlock);
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
      const float* v = stage_values(k, stride);
      multiply_values(rows, scores + (k - c0), v, stride, kBlock, o);
    }
    for (int n = 0; n < u.nodes; ++n) add_values(n, c0, std::max(low[n], shared1), std::min(high[n], c1));
  }

  // Scores of the tree's own nodes: by tiles of slots that hold an ancestor of some row, put where their
  // position is.
  void score_paths(int c0) {
    const int base = L / kBlock, tiles = (slots_end - 1) / kBlock - base + 1;
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
      const float* b = stage_keys(slot0, keys);
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
        stage_value(request.chain || at < L ? at : path[n * kChunk + at - c0], values + i * D);
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

  const T* page(const KvPages& pages, int slot) const {
    return static_cast<const T*>(pages.data) + table[slot / S] * pages.stride_p;
  }
  const T* row(const KvPages& pages, int slot) const {  // paged layout
    return page(pages, slot) + slot % S * pages.stride_s + u.g * pages.stride_g;
  }

  // Keys of slots [slot0, slot0 + 16) as f32 [D][16]. Lanes of unused slots hold anything.
  const float* stage_keys(int slot0, float* to) {
    if (p.kv_layout == KvLayout::kTiled) {
      const T* from = page(p.k, slot0) + (int64_t(u.g) * S + slot0 % S) * D;
      if constexpr (kType == DType::kF32) {
        return from;
      } else {
        for (int d = 0; d < D; d += 2) store_pairs(from + d * kBlock, to + d * kBlock);
        return to;
      }
    }
    static const T kNone[256] = {};
    const T* from[kBlock];
    for (int i = 0; i < kBlock; ++i) {
      const int slot = slot0 + i;
      from[i] = slot < first_slot || slot >= slots_end ? kNone : row(p.k, slot);
    }
    I32 lanes[16];
    if constexpr (kType == DType::kF32) {
      for (int d = 0; d < D; d += 16) {
        for (int i = 0; i < 16; ++i) lanes[i] = bits(load(from[i] + d));
        transpose(lanes);
        for (int i = 0; i < 16; ++i) store(to + (d + i) * kBlock, from_bits(lanes[i]));
      }
    } else {
      for (int d = 0; d < D; d += 32) {
        alignas(64) uint16_t pairs[16][32] = {};
        const int count = D - d < 32 ? 16 : 32;
        for (int i = 0; i < 16; ++i) {
          if (count < 32) std::memcpy(pairs[i], from[i] + d, count * sizeof(T));
          lanes[i] = iload(reinterpret_cast<const int32_t*>(count < 32 ? pairs[i] : from[i] + d));
        }
        transpose(lanes);
        for (int i = 0; i < count / 2; ++i) {
          istore(reinterpret_cast<int32_t*>(pairs[i]), lanes[i]);
          store_pairs(pairs[i], to + (d + 2 * i) * kBlock);
        }
      }
    }
    return to;
  }

  void store_pairs(const uint16_t* from, float* to) {
    F32 even, odd;
    widen_pairs<kType>(from, even, odd);
    store(to, even);
    store(to + kLanes, odd);
  }

  // Values of slots [slot0, slot0 + 16), all visible, as f32 rows `stride` apart.
  const float* stage_values(int slot0, int64_t& stride) {
    if constexpr (kType == DType::kF32) {
      if (p.kv_layout == KvLayout::kTiled) return page(p.v, slot0) + (int64_t(u.g) * S + slot0 % S) * D;
      if (slot0 % S + kBlock <= S) {
        stride = p.v.stride_s;
        return row(p.v, slot0);
      }
    } else if (p.kv_layout == KvLayout::kTiled) {
      const T* from = page(p.v, slot0) + (int64_t(u.g) * S + slot0 % S) * D;
      for (int i = 0; i < kBlock; i += 2)
        for (int d = 0; d < D; d += kLanes) {
          F32 even, odd;
          widen_pairs<kType>(from + i * D + 2 * d, even, odd);
          store(values + i * D + d, even);
          store(values + (i + 1) * D + d, odd);
        }
      return values;
    }
    for (int i = 0; i < kBlock; ++i) stage_value(slot0 + i, values + i * D);
    return values;
  }

  void stage_value(int slot, float* to) {
    if constexpr (kType != DType::kF32) {
      if (p.kv_layout == KvLayout::kTiled) {
        const T* from = page(p.v, slot) + (int64_t(u.g) * S + slot % S / 2 * 2) * D;
        for (int d = 0; d < D; d += kLanes) {
          F32 even, odd;
          widen_pairs<kType>(from + 2 * d, even, odd);
          store(to + d, slot % 2 ? odd : even);
        }
        return;
      }
    }
    const T* from = p.kv_layout == KvLayout::kTiled ? page(p.v, slot) + (int64_t(u.g) * S + slot % S) * D
                                                    : row(p.v, slot);
    for (int d = 0; d < D; d += kLanes) store(to + d, widen<kType>(from + d));
  }

  const TreeAttentionParams& p;
  const Plan::Unit& u;
  const Plan::Request& request;
  const int D, S, R, rows, L, slots_end;
  const int32_t* table;
  int low_min, low_max, high_min, high_max, first_slot;
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
