// SPDX-License-Identifier: Apache-2.0
// f32 rows, as they are made by another kernel or lie in memory, to the int8 tiles of pyspec/quant_format.h.
// A unit is one group of one row; sixteen units are quantised at once, one in each lane. Included inside
// kernel files, after cpu/kernel.h.
#pragma once

#include "pyspec/quant_format.h"

namespace pyspec::PYSPEC_ISA {

constexpr int64_t kItemUnits = 256;  // of a tile, contiguous in the workspace: about 1 us of work

struct Largest {
  static I32 of(I32 a, I32 b) { return max(a, b); }
  static int32_t lanes(I32 a) { return reduce_max(a); }
};
struct Sum {
  static I32 of(I32 a, I32 b) { return a + b; }
  static int32_t lanes(I32 a) { return reduce_add(a); }
};

// Lane i: all lanes of v[i] together. Integers: their order does not matter.
template <typename Op>
inline I32 across(const I32 (&v)[16]) {
#if defined(PYSPEC_ISA_AVX512)
  I32 quads[4];  // a quarter of a register for each of four vectors, whose numbers differ by 4
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const auto halves = [](I32 a, I32 b) {
      return Op::of({_mm512_shuffle_i32x4(a.v, b.v, 0x44)}, {_mm512_shuffle_i32x4(a.v, b.v, 0xee)});
    };
    const I32 a = halves(v[i], v[4 + i]), b = halves(v[8 + i], v[12 + i]);
    quads[i] = Op::of({_mm512_shuffle_i32x4(a.v, b.v, 0x88)}, {_mm512_shuffle_i32x4(a.v, b.v, 0xdd)});
  }
  const auto pairs = [](I32 a, I32 b) {
    return Op::of({_mm512_unpacklo_epi64(a.v, b.v)}, {_mm512_unpackhi_epi64(a.v, b.v)});
  };
  const __m512 a = _mm512_castsi512_ps(pairs(quads[0], quads[1]).v);
  const __m512 b = _mm512_castsi512_ps(pairs(quads[2], quads[3]).v);
  return Op::of({_mm512_castps_si512(_mm512_shuffle_ps(a, b, 0x88))},
                {_mm512_castps_si512(_mm512_shuffle_ps(a, b, 0xdd))});
#else
  alignas(64) int32_t all[16];
  for (int i = 0; i < 16; ++i) all[i] = Op::lanes(v[i]);
  return iload(all);
#endif
}

// The parts of a workspace that belong to the tile of R rows from m0 on.
struct UnitTile {
  Activations a;
  int64_t m0, R;
  UnitTile(const Activations& all, int64_t m0, int64_t M, int64_t K)
      : a(all), m0(m0), R(std::min(kRowTile, M - m0)) {
    const int64_t units = m0 * (K / kGroup);
    a.q += units * kGroup;
    a.scale += units;
    a.sum += units;
    a.negative_sums += units * 3;
  }
};

// Units [begin, end) of a tile; unit g R + r is group g of row r. source(m, k): values k to k + 15 of row m.
template <typename Source>
void quantize_units(const UnitTile& tile, int64_t begin, int64_t end, const Source& source) {
  constexpr int32_t kInfinity = 0x7f800000;
  const F32 tiny = set1(1e-30f);  // groups below are zeros: 127 / amax stays finite and normal
  const F32 steps = set1(127.0f);
  const Activations& a = tile.a;
  const int64_t R = tile.R;
  for (int64_t u = begin; u < end; u += 16) {
    const int count = int(std::min<int64_t>(16, end - u));
    F32 x[16][2];
    I32 most[16], q[2][16];
    int64_t g = u / R, r = u % R;
    for (int i = 0; i < count; ++i) {
      x[i][0] = source(tile.m0 + r, g * kGroup);
      x[i][1] = source(tile.m0 + r, g * kGroup + 16);
      // As integers the bits of magnitudes are in order, and NaN is the largest.
      most[i] = max(bits(abs(x[i][0])), bits(abs(x[i][1])));
      if (++r == R) r = 0, ++g;
    }
    for (int i = count; i < 16; ++i) most[i] = q[0][i] = q[1][i] = iset1(0);
    I32 largest = across<Largest>(most);
    F32 poison = zero();
    if (reduce_max(largest) >= kInfinity) {
      alignas(64) int32_t magnitude[16];
      alignas(64) float nan[16];
      istore(magnitude, largest);
      for (int i = 0; i < 16; ++i) {
        const bool finite = magnitude[i] < kInfinity;
        nan[i] = finite ? 0.0f : std::numeric_limits<float>::quiet_NaN();
        if (!finite) magnitude[i] = 0, x[i][0] = x[i][1] = zero();
      }
      largest = iload(magnitude);
      poison = load(nan);
    }
    const F32 amax = from_bits(largest);
    const F32 scale = keep_ge(amax, tiny, amax / steps) + poison;
    alignas(64) float inverse[16];
    store(inverse, keep_ge(amax, tiny, steps / amax));
    for (int i = 0; i < count; ++i)
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        q[half][i] = round_i32(x[i][half] * set1(inverse[i]));
        store_i8(a.q + (u + i) * kGroup + half * 16, q[half][i]);
      }
    const I32 first = across<Sum>(q[0]), second = across<Sum>(q[1]), both = first + second;
    store_n(a.scale + u, scale, count);
    store_n(a.sum + u, scale * to_f32(both), count);
    alignas(64) int32_t negative[3][16];
    istore(negative[0], iset1(0) - both);
    istore(negative[1], iset1(0) - first);
    istore(negative[2], iset1(0) - second);
    g = u / R, r = u % R;
    for (int i = 0; i < count; ++i) {
      int32_t* to = a.negative_sums + 3 * g * R + r;
      for (int j = 0; j < 3; ++j) to[j * R] = negative[j][i];
      if (++r == R) r = 0, ++g;
    }
  }
}

// M rows of K values of a source, in items that share no cache line; `parallel`: whether threads pay.
template <typename Source>
void quantize_rows(void* workspace, int64_t M, int64_t K, bool parallel, const Source& source) {
  const Activations a(workspace, M, K);
  const int64_t tiles = (M + kRowTile - 1) / kRowTile, G = K / kGroup;
  const int64_t parts = (kRowTile * G + kItemUnits - 1) / kItemUnits;
  const auto item = [&](int64_t i) {
    const UnitTile tile(a, i / parts * kRowTile, M, K);
    const int64_t begin = i % parts * kItemUnits, units = tile.R * G;
    if (begin < units) quantize_units(tile, begin, std::min(units, begin + kItemUnits), source);
  };
  if (parallel) return parallel_for(tiles * parts, item);
  for (int64_t i = 0; i < tiles * parts; ++i) item(i);
}

}  // namespace pyspec::PYSPEC_ISA
