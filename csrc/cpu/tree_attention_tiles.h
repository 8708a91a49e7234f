// SPDX-License-Identifier: Apache-2.0
// The arithmetic of tree_attention.cpp: tiles of 16 lanes, and the functions of a softmax. With bf16 and int8
// pages products are those of VDPBF16PS, two FMAs: the set avx512_bf16 has the instruction, others the FMAs.
#pragma once

#include "cpu/kernel.h"

namespace pyspec::PYSPEC_ISA {

constexpr int kChunk = 256, kBlock = 16, kStep = 64;
constexpr int kScoreStride = kChunk + kBlock;  // elements; not a power of two: rows must not share L1 sets
constexpr float kLog2e = 1.4426950408889634f;
// tanh(x) = x + x z P(z) for z = x^2 <= 1/4: least squares at Chebyshev nodes, relative error 2e-9 before
// rounding.
constexpr float kTanh[5] = {-3.3333332809e-01f, 1.3333227376e-01f, -5.3933787266e-02f, 2.1472710399e-02f,
                            -6.9469843077e-03f};
// 2^x on [-1/2, 1/2]: relative error 3e-6, least among those that are 1 at 0.
constexpr float kExp2[5] = {1.0f, 6.9312419339e-01f, 2.4024098613e-01f, 5.5906424742e-02f, 9.5828529930e-03f};
#if defined(PYSPEC_ISA_AVX512_BF16)
constexpr bool kHasDots = true;
#else
constexpr bool kHasDots = false;
#endif
// Queries and weights are rounded to bf16; int8 keys and values are exact in it.
template <DType kType>
constexpr bool kRounded = kType == DType::kBF16 || kType == DType::kI8;
template <DType kType>
constexpr bool kDots = kHasDots && kRounded<kType>;
// What queries, weights and staged keys and values are kept in. As bf16, keys and values lie in pairs.
template <DType kType>
using Operand = std::conditional_t<kDots<kType>, uint16_t, float>;
template <DType kType>
constexpr DType kStaged = kDots<kType> ? DType::kBF16 : DType::kF32;
// Rows and columns of 16 of a tile of sums: what registers hold beside the operands.
#if defined(PYSPEC_ISA_AVX512)
template <typename A>
constexpr int kRows = sizeof(A) == 2 ? 6 : 12;
template <typename A>
constexpr int kCols = sizeof(A) == 2 ? 4 : 2;
#else
#if defined(PYSPEC_ISA_AVX2)
template <typename A>
constexpr int kRows = 5;
#else
template <typename A>
constexpr int kRows = 6;
#endif
template <typename A>
constexpr int kCols = 1;
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
template <>
struct Element<DType::kI8> {
  using T = int8_t;
};
#if defined(PYSPEC_ISA_AVX512)
inline F32 load_i8(const int8_t* p) {
  return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
}
#elif defined(PYSPEC_ISA_AVX2)
inline __m256 i8_half(const int8_t* p) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline F32 load_i8(const int8_t* p) { return {i8_half(p), i8_half(p + 8)}; }
#else
inline F32 load_i8(const int8_t* p) {
  float t[kLanes];
  for (int i = 0; i < kLanes; ++i) t[i] = float(p[i]);
  return load(t);
}
#endif
template <DType kType>
inline F32 widen(const typename Element<kType>::T* p) {
  if constexpr (kType == DType::kF32) return load(p);
  if constexpr (kType == DType::kBF16) return load_bf16(p);
  if constexpr (kType == DType::kF16) return load_f16(p);
  if constexpr (kType == DType::kI8) return load_i8(p);
}
// Rows k (even) and k + 1 of a tiled operand, whose rows are `stride` elements: pairs of 16-bit elements lie
// together.
template <DType kType>
inline void widen_rows(const typename Element<kType>::T* p, int64_t stride, F32& even, F32& odd) {
  if constexpr (kType == DType::kBF16) {
    load_bf16_pairs(p, even, odd);
  } else if constexpr (kType == DType::kF16) {
    load_f16_pairs(p, even, odd);
  } else {
    even = widen<kType>(p);
    odd = widen<kType>(p + stride);
  }
}

// One of them.
template <DType kType>
inline F32 widen_one(const typename Element<kType>::T* p, int64_t stride, bool odd) {
  F32 rows[2];
  widen_rows<kType>(p, stride, rows[0], rows[1]);
  return rows[odd];
}

// To bf16 as VCVTNEPS2BF16 does: to nearest even, denormals to 0 (by the addition), NaN stays NaN.
inline F32 round_bf16(F32 x) {
  const I32 u = bits(x + zero()), known = bits(keep_ge(x, x, from_bits(iset1(-1))));
  const I32 rounded = (u + iset1(0x7fff) + (shift_right<16>(u) & iset1(1))) & iset1(int32_t(0xffff0000));
  return from_bits((rounded & known) + (iset1(0x7fc00000) & (iset1(-1) - known)));
}
// Queries and weights as products take them.
template <DType kType>
inline void put(float* to, F32 x) {
  store(to, kRounded<kType> ? round_bf16(x) : x);
}
template <DType kType>
inline void put(uint16_t* to, F32 x) {
#if defined(PYSPEC_ISA_AVX512_BF16) && !defined(PYSPEC_BF16_TWIN)
  const auto narrow = _mm512_cvtneps_pbh(x.v);
  std::memcpy(to, &narrow, sizeof narrow);
#else
  store_bf16(to, round_bf16(x));
#endif
}

// sum + a b for lanes of two bf16, the odd (upper) ones first.
inline F32 dot(F32 sum, I32 a, I32 b) {
#if defined(PYSPEC_ISA_AVX512_BF16) && !defined(PYSPEC_BF16_TWIN)
  return {_mm512_dpbf16_ps(sum.v, __m512bh(a.v), __m512bh(b.v))};
#else
  const I32 odd = iset1(int32_t(0xffff0000));
  sum = fma(from_bits(a & odd), from_bits(b & odd), sum);
  return fma(from_bits(shift_left<16>(a)), from_bits(shift_left<16>(b)), sum);
#endif
}
// Lanes of two bf16 from values of that precision; one half of such lanes in memory.
inline I32 pair(F32 even, F32 odd) {
#if defined(PYSPEC_ISA_AVX512)
  return {_mm512_or_si512(_mm512_srli_epi32(bits(even).v, 16), bits(odd).v)};
#else
  return (shift_right<16>(bits(even)) & iset1(0xffff)) + bits(odd);
#endif
}
template <DType kType>
inline I32 load_pairs(const typename Element<kType>::T* p, int64_t stride) {
  if constexpr (kType == DType::kBF16) return iload(reinterpret_cast<const int32_t*>(p));
  F32 even, odd;
  widen_rows<kType>(p, stride, even, odd);
  return pair(even, odd);
}
inline void store_half(uint16_t* to, bool odd, F32 x) {
#if defined(PYSPEC_ISA_AVX512)
  const __m512i both = _mm512_or_si512(bits(x).v, _mm512_srli_epi32(bits(x).v, 16));
  _mm512_mask_storeu_epi16(to, odd ? 0xaaaaaaaau : 0x55555555u, both);
#else
  alignas(64) int32_t t[kLanes];
  istore(t, bits(x));
  for (int i = 0; i < kLanes; ++i) to[2 * i + odd] = uint16_t(uint32_t(t[i]) >> 16);
#endif
}
// Sixteen values of row i of staged rows of D from column d on.
inline void put_row(float* rows, int i, int D, int d, F32 x) { store(rows + i * D + d, x); }
inline void put_row(uint16_t* rows, int i, int D, int d, F32 x) {
  store_half(rows + (i & ~1) * D + 2 * d, i & 1, x);
}

// What becomes of the sums of a tile: they start from 0, or are added to those that are there, or go on from
// these in one chain.
enum class Sum { kSet, kAdd, kGoOn };
// Sums of kR rows and kC columns of 16, one chain for each over all k in pairs, the odd one first: c[r][16 j
// + lane] from a[r][part n + k] * b(part, j)[k][lane] for every part and k < n.
template <DType kType, Sum kSum, int kC, int kR, typename A, typename Columns>
inline void multiply_tile(const A* a, int64_t a_stride, const Columns& b, int64_t b_stride, int parts, int n,
                          float* c, int64_t c_stride) {
  F32 sum[kR][kC];
  for (int r = 0; r < kR; ++r)
    for (int j = 0; j < kC; ++j)
      sum[r][j] = kSum == Sum::kGoOn ? load(c + r * c_stride + j * kLanes) : zero();
  int part = 0;
  do {  // parts and n are never 0, and loops that say so keep the sums in registers
    const typename Element<kType>::T* from[kC];
    for (int j = 0; j < kC; ++j) from[j] = b(part, j);
    int k = 0;
    do {
      if constexpr (std::is_same_v<A, float>) {
        for (const bool odd : {true, false}) {
          F32 row[kC];
          for (int j = 0; j < kC; ++j) row[j] = widen_one<kType>(from[j], b_stride, odd);
          for (int r = 0; r < kR; ++r)
            for (int j = 0; j < kC; ++j) sum[r][j] = fma(set1(a[r * a_stride + odd]), row[j], sum[r][j]);
        }
      } else {
        I32 pairs[kC];
        for (int j = 0; j < kC; ++j) pairs[j] = load_pairs<kType>(from[j], b_stride);
        for (int r = 0; r < kR; ++r) {
          int32_t both;
          std::memcpy(&both, a + r * a_stride, sizeof both);
          for (int j = 0; j < kC; ++j) sum[r][j] = dot(sum[r][j], iset1(both), pairs[j]);
        }
      }
      for (int j = 0; j < kC; ++j) from[j] += 2 * b_stride;
      a += 2;
      k += 2;
    } while (k < n);
  } while (++part < parts);
  for (int r = 0; r < kR; ++r)
    for (int j = 0; j < kC; ++j) {
      float* to = c + r * c_stride + j * kLanes;
      store(to, kSum == Sum::kAdd ? load(to) + sum[r][j] : sum[r][j]);
    }
}

template <DType kType, Sum kSum, int kC, int kR, typename... Args>
inline void multiply_rows(int rows, const Args&... args) {
  if (rows == kR) return multiply_tile<kType, kSum, kC, kR>(args...);
  if constexpr (kR > 1) multiply_rows<kType, kSum, kC, kR - 1>(rows, args...);
}

// All rows, in tiles of equal sizes.
template <DType kType, Sum kSum, int kC, typename A, typename Columns>
void multiply(int rows, const A* a, int64_t a_stride, const Columns& b, int64_t b_stride, int parts, int n,
              float* c, int64_t c_stride) {
  for (int tiles = (rows + kRows<A> - 1) / kRows<A>; tiles > 0; --tiles) {
    const int count = (rows + tiles - 1) / tiles;
    multiply_rows<kType, kSum, kC, kRows<A>>(count, a, a_stride, b, b_stride, parts, n, c, c_stride);
    rows -= count;
    a += count * a_stride;
    c += count * c_stride;
  }
}

// scores[r][16 j + lane] of the rows of q [D] and the keys of kC tiles, in steps of 64 d: longer chains would
// be less exact than sums in blocks.
template <DType kType, int kC, typename A>
void score_tiles(int rows, const A* q, int D, const typename Element<kType>::T* const* keys, float* scores,
                 int64_t stride) {
  const auto column = [&](int, int j) { return keys[j]; };
  multiply<kType, Sum::kSet, kC>(rows, q, D, column, kBlock, 1, std::min(D, kStep), scores, stride);
  for (int d = kStep; d < D; d += kStep) {
    const auto further = [&](int, int j) { return keys[j] + d * kBlock; };
    multiply<kType, Sum::kAdd, kC>(rows, q + d, D, further, kBlock, 1, std::min(D - d, kStep), scores,
                                   stride);
  }
}

// out[r][d, D) += the weights of row r times n rows of each of the parts of v, which are `stride` elements
// apart.
template <DType kType, int kC, typename A>
void add_weighted(int rows, const A* weights, const typename Element<kType>::T* const* v, int64_t stride,
                  int parts, int n, float* out, int D, int d = 0) {
  constexpr int kWidth = sizeof **v == 2 ? 2 : 1;  // rows of 16-bit values lie in pairs
  for (; d + kC * kLanes <= D; d += kC * kLanes) {
    const auto column = [&](int part, int j) { return v[part] + (d + j * kLanes) * kWidth; };
    multiply<kType, Sum::kGoOn, kC>(rows, weights, kScoreStride, column, stride, parts, n, out + d, D);
  }
  if constexpr (kC > 1) add_weighted<kType, kC / 2>(rows, weights, v, stride, parts, n, out, D, d);
}

// 2^x for x <= 0 as a weight that is rounded to bf16: by a polynomial of degree 4; exactly 0 from -127 down,
// where the polynomial is 1 and its exponent is taken away. Results below 2^-126 are denormals, which count
// as 0.
inline F32 exp2_rounded(F32 x) {
  const F32 magic = set1(12582912.0f), clamped = max(x, set1(-127.0f));  // 1.5 * 2^23: adding it rounds
  const F32 shifted = clamped + magic, f = clamped - (shifted - magic);
  F32 p = set1(kExp2[4]);
  for (int i = 3; i >= 0; --i) p = fma(p, f, set1(kExp2[i]));
  return from_bits(bits(p) + shift_left<23>(bits(shifted)));
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

struct Softmax {
  float scale, softcap;  // softcap 0: none
  float exponent;        // of a weight, per score: log2(e), times scale unless scores were capped

  // Scores of positions [from, to) of a chunk become weights, all others of their vectors and of [shared0,
  // shared1) 0. m is the largest score, l the sum of the weights before they are rounded. Weights of int8
  // values are left to be scaled first.
  template <DType kType, typename W>
  void row(float* s, W* w, int from, int to, int shared0, int shared1, float& m, float& l) const {
    m = l = 0.0f;
    if (from >= to) {
      std::fill(w + shared0, w + shared1, W(0));
      return;
    }
    const int begin = floor16(from), end = ceil16(to);
    if (end < shared1) std::fill(w + end, w + shared1, W(0));
    const float hidden = -std::numeric_limits<float>::infinity();
    if (softcap > 0) {
      const F32 in = set1(scale / softcap), cap = set1(softcap);
      for (int i = begin; i < end; i += kLanes) store(s + i, cap * tanh(load(s + i) * in));
    }
    std::fill(s + begin, s + from, hidden);
    std::fill(s + to, s + end, hidden);
    F32 largest[4] = {set1(hidden), set1(hidden), set1(hidden), set1(hidden)};
    int i = begin;
    for (; i + 4 * kLanes <= end; i += 4 * kLanes)
      for (int j = 0; j < 4; ++j) largest[j] = max(largest[j], load(s + i + j * kLanes));
    for (; i < end; i += kLanes) largest[0] = max(largest[0], load(s + i));
    m = reduce_max(max(max(largest[0], largest[1]), max(largest[2], largest[3])));
    const F32 c = set1(exponent), minus = set1(-m * exponent);
    const auto weigh = [&](int at) {
      const F32 x = fma(load(s + at), c, minus);
      const F32 weight = kRounded<kType> ? exp2_rounded(x) : exp2(x);
      put<kType == DType::kI8 ? DType::kF32 : kType>(w + at, weight);
      return weight;
    };
    F32 even = zero(), odd = zero();
    i = begin;
    if (i / kLanes % 2) odd = weigh(i), i += kLanes;
    for (; i + kLanes < end; i += 2 * kLanes) {
      even = even + weigh(i);
      odd = odd + weigh(i + kLanes);
    }
    if (i < end) even = even + weigh(i);
    l = reduce_add(even + odd);
  }

  // One more chunk with results m, l and o [D] of each row joins the running ones.
  void merge(int rows, int D, const float* m, const float* l, const float* o, float* acc_m, float* acc_l,
             float* acc) const {
    const F32 c = set1(exponent);
    alignas(64) float top[kLanes], a[kLanes], b[kLanes];
    for (int r = 0; r < rows; ++r) {
      const int i = r % kLanes, count = std::min(kLanes, rows - r);
      if (i == 0) {
        const F32 old = load_n(acc_m + r, count), fresh = load_n(m + r, count), most = max(old, fresh);
        store(top, most);
        store(a, exp2((old - most) * c));
        store(b, exp2((fresh - most) * c));
      }
      if (l[r] == 0.0f) continue;
      float* sum = acc + r * D;
      const float* add = o + r * D;
      if (acc_l[r] == 0.0f) {
        std::memcpy(sum, add, D * sizeof(float));
        acc_m[r] = m[r];
        acc_l[r] = l[r];
        continue;
      }
      acc_l[r] = __builtin_fmaf(l[r], b[i], acc_l[r] * a[i]);
      acc_m[r] = top[i];
      const F32 va = set1(a[i]), vb = set1(b[i]);
      for (int d = 0; d < D; d += kLanes) store(sum + d, fma(load(add + d), vb, load(sum + d) * va));
    }
  }
};

}  // namespace pyspec::PYSPEC_ISA
