// SPDX-License-Identifier: Apache-2.0
// How tree_attention.cpp reads the KV cache: keys and values of any type and layout, widened to f32 operands.
#pragma once

#include "cpu/kernel.h"
#include "cpu/tree_attention_tiles.h"
#include "pyspec/tree_attention.h"

namespace pyspec::PYSPEC_ISA {

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

// One request's keys and values of one KV head.
template <DType kType>
class KvReader {
  using T = typename Element<kType>::T;

 public:
  KvReader(const TreeAttentionParams& p, int request, int g)
      : k_(p.k),
        v_(p.v),
        table_(p.page_table + request * p.W),
        D(int(p.D)),
        S(int(p.S)),
        g_(g),
        shift_((S & (S - 1)) ? -1 : __builtin_ctz(unsigned(S))),
        tiled_(p.kv_layout == KvLayout::kTiled) {}

  // Only slots [first, end) may be touched.
  void restrict(int first, int end) {
    first_ = first;
    end_ = end;
  }

  // Keys of slots [slot0, slot0 + 16) as f32 [D][16], in `to` or in the cache. Lanes of other slots hold
  // anything.
  const float* keys(int slot0, float* to) const {
    if constexpr (kType == DType::kF32) {
      if (tiled_) return tile(k_, slot0);
    } else if (tiled_) {
      const T* from = tile(k_, slot0);
      const int count = D;
      for (int d = 0; d < count; d += 2) widen_pair_to(from + d * kBlock, to + d * kBlock);
      return to;
    }
    static const T kNone[256] = {};
    const T* from[kBlock];
    for (int i = 0; i < kBlock; ++i)
      from[i] = slot0 + i < first_ || slot0 + i >= end_ ? kNone : row(k_, slot0 + i);
    I32 lanes[16];
    if constexpr (kType == DType::kF32) {
      for (int d = 0; d < D; d += 16) {
        for (int i = 0; i < 16; ++i) lanes[i] = bits(load(from[i] + d));
        transpose(lanes);
        for (int i = 0; i < 16; ++i) store(to + (d + i) * kBlock, from_bits(lanes[i]));
      }
    } else {
      alignas(64) uint16_t pairs[16][32] = {};
      for (int d = 0; d < D; d += 32) {
        const int count = D - d < 32 ? 16 : 32;  // a row must not be read beyond its end
        for (int i = 0; i < 16; ++i) {
          if (count < 32) std::memcpy(pairs[i], from[i] + d, count * sizeof(T));
          lanes[i] = iload(reinterpret_cast<const int32_t*>(count < 32 ? pairs[i] : from[i] + d));
        }
        transpose(lanes);
        for (int i = 0; i < count / 2; ++i) {
          istore(reinterpret_cast<int32_t*>(pairs[i]), lanes[i]);
          widen_pair_to(pairs[i], to + (d + 2 * i) * kBlock);
        }
      }
    }
    return to;
  }

  // Values of slots [slot0, slot0 + 16), all written, as f32 rows `stride` apart, in `to` or in the cache.
  const float* values(int slot0, float* to, int64_t& stride) const {
    stride = D;
    if constexpr (kType == DType::kF32) {
      if (tiled_) return tile(v_, slot0);
      if (slot0 % S + kBlock <= S) {
        stride = v_.stride_s;
        return row(v_, slot0);
      }
    } else if (tiled_) {
      const T* from = tile(v_, slot0);
      const int count = D;
      for (int i = 0; i < kBlock * count; i += 2 * count)
        for (int d = 0; d < count; d += kLanes) {
          F32 even, odd;
          widen_pairs<kType>(from + i + 2 * d, even, odd);
          store(to + i + d, even);
          store(to + i + count + d, odd);
        }
      return to;
    }
    for (int i = 0; i < kBlock; ++i) value(slot0 + i, to + i * D);
    return to;
  }

  // Value of one slot as f32 [D].
  void value(int slot, float* to) const {
    const int count = D;
    if constexpr (kType != DType::kF32) {
      if (tiled_) {
        const T* from = tile(v_, slot & ~1);
        const bool is_odd = slot & 1;
        for (int d = 0; d < count; d += kLanes) {
          F32 even, odd;
          widen_pairs<kType>(from + 2 * d, even, odd);
          store(to + d, is_odd ? odd : even);
        }
        return;
      }
    }
    const T* from = tiled_ ? tile(v_, slot) : row(v_, slot);
    for (int d = 0; d < count; d += kLanes) store(to + d, widen<kType>(from + d));
  }

 private:
  const T* page(const KvPages& pages, int slot, int& offset) const {
    const int index = shift_ >= 0 ? slot >> shift_ : slot / S;  // a division costs as much as a row of values
    offset = slot - index * S;
    return static_cast<const T*>(pages.data) + table_[index] * pages.stride_p;
  }
  const T* row(const KvPages& pages, int slot) const {
    int offset;
    const T* data = page(pages, slot, offset);
    return data + offset * pages.stride_s + g_ * pages.stride_g;
  }
  // Slot (a multiple of 16 for keys, of 2 for 16-bit values) in the tiled layout.
  const T* tile(const KvPages& pages, int slot) const {
    int offset;
    const T* data = page(pages, slot, offset);
    return data + (int64_t(g_) * S + offset) * D;
  }
  static void widen_pair_to(const uint16_t* from, float* to) {
    F32 even, odd;
    widen_pairs<kType>(from, even, odd);
    store(to, even);
    store(to + kLanes, odd);
  }

  const KvPages k_, v_;
  const int32_t* const table_;
  const int D, S, g_, shift_;
  const bool tiled_;
  int first_ = 0, end_ = 0;
};

}  // namespace pyspec::PYSPEC_ISA
