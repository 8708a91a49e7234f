// SPDX-License-Identifier: Apache-2.0
// How tree_attention.cpp reads the KV cache: keys and values of any type and layout, as operands of products.
#pragma once

#include "cpu/kernel.h"
#include "cpu/transpose.h"
#include "cpu/tree_attention_tiles.h"
#include "pyspec/tree_attention.h"

namespace pyspec::PYSPEC_ISA {

// One request's keys and values; g is a KV head.
template <DType kType>
class KvReader {
  using T = typename Element<kType>::T;
  using A = Operand<kType>;

 public:
  KvReader(const TreeAttentionParams& p, int request)
      : k_(p.k),
        v_(p.v),
        table_(p.page_table + request * p.W),
        D(int(p.D)),
        S(int(p.S)),
        G(int(p.G)),
        shift_((S & (S - 1)) ? -1 : __builtin_ctz(unsigned(S))),
        tiled_(p.kv_layout == KvLayout::kTiled) {}

  // Only slots [first, end) may be touched.
  void restrict(int first, int end) {
    first_ = first;
    end_ = end;
  }

  // Keys of slots [slot0, slot0 + 16) as operands [D][16], in `to` or in the cache. Lanes of other slots hold
  // anything.
  const A* keys(int g, int slot0, A* to) const {
    const int count = D;
    if (tiled_) {
      const T* from = tile(k_, g, slot0);
      if constexpr (std::is_same_v<A, T>) return from;
      for (int d = 0; d < count; d += 2) widen_rows_to(from + d * kBlock, kBlock, to + d * kBlock);
      return to;
    }
    static const T kNone[256] = {};
    const T* from[kBlock];
    for (int i = 0; i < kBlock; ++i)
      from[i] = slot0 + i < first_ || slot0 + i >= end_ ? kNone : row(k_, g, slot0 + i);
    I32 lanes[16];
    if constexpr (sizeof(T) == 2) {
      alignas(64) uint16_t pairs[16][32] = {};
      for (int d = 0; d < D; d += 32) {
        const int count = D - d < 32 ? 16 : 32;  // a row must not be read beyond its end
        for (int i = 0; i < 16; ++i) {
          if (count < 32) std::memcpy(pairs[i], from[i] + d, count * sizeof(T));
          lanes[i] = iload(reinterpret_cast<const int32_t*>(count < 32 ? pairs[i] : from[i] + d));
        }
        transpose(lanes);
        for (int i = 0; i < count / 2; ++i) {
          A* rows = to + (d + 2 * i) * kBlock;
          if constexpr (std::is_same_v<A, T>) {
            istore(reinterpret_cast<int32_t*>(rows), lanes[i]);
          } else {
            istore(reinterpret_cast<int32_t*>(pairs[i]), lanes[i]);
            widen_rows_to(pairs[i], 0, rows);
          }
        }
      }
    } else {
      for (int d = 0; d < count; d += 16) {
        for (int i = 0; i < 16; ++i) lanes[i] = bits(widen<kType>(from[i] + d));
        transpose(lanes);
        for (int i = 0; i < 16; i += 2)
          put_rows(to + (d + i) * kBlock, from_bits(lanes[i]), from_bits(lanes[i + 1]));
      }
    }
    return to;
  }

  // Values of slots [slot0, slot0 + 16), all written, as operands whose rows are `stride` apart, in `to` or
  // in the cache.
  const A* values(int g, int slot0, A* to, int64_t& stride) const {
    stride = D;
    if constexpr (std::is_same_v<A, T>) {
      if (tiled_) return tile(v_, g, slot0);
      if (sizeof(T) == 4 && slot0 % S + kBlock <= S) {
        stride = v_.stride_s;
        return row(v_, g, slot0);
      }
    }
    const int count = D;
    for (int i = 0; i < kBlock; i += 2) {
      const T* even = value_row(g, slot0 + i);
      const T* odd = value_row(g, slot0 + i + 1);
      for (int d = 0; d < count; d += kLanes) {
        F32 x, y;
        if (sizeof(T) == 2 && tiled_) {
          widen_rows<kType>(even + 2 * d, 0, x, y);
        } else {
          x = widen<kType>(even + d), y = widen<kType>(odd + d);
        }
        if constexpr (kDots<kType>) {
          istore(reinterpret_cast<int32_t*>(to + i * count + 2 * d), pair(x, y));
        } else {
          store(to + i * count + d, x);
          store(to + (i + 1) * count + d, y);
        }
      }
    }
    return to;
  }

  // Value of one slot as row i of operands [16][D].
  void value(int g, int slot, A* to, int i) const {
    const int count = D;
    const T* from = value_row(g, slot);
    for (int d = 0; d < count; d += kLanes) {
      F32 even, odd;
      if (sizeof(T) == 2 && tiled_) {
        widen_rows<kType>(from + 2 * d, 0, even, odd);
      } else {
        even = odd = widen<kType>(from + d);
      }
      put_row(to, i, count, d, slot & 1 ? odd : even);
    }
  }

  // Scale of one slot of `scales` [P, S, G]; those of slots [slot0, end), at most 16, and 0 for slots that
  // may not be touched.
  float scale(const float* scales, int g, int slot) const {
    int offset;
    const int64_t page = page_of(slot, offset);
    return scales[(page * S + offset) * G + g];
  }
  F32 scales(const float* scales, int g, int slot0, int end) const {
    alignas(64) float lanes[kBlock] = {};
    for (int i = std::max(slot0, first_); i < std::min({slot0 + kBlock, end, end_}); ++i)
      lanes[i - slot0] = scale(scales, g, i);
    return load(lanes);
  }

  // The tiles of 16 keys or values from slot0 (a multiple of 16) on, as they lie in the tiled layout.
  const T* key_tile(int g, int slot0) const { return tile(k_, g, slot0); }
  const T* value_tile(int g, int slot0) const { return tile(v_, g, slot0); }

  // Asks for the keys or values of slots [slot0, slot0 + 16), those of them that may be touched. Always
  // inline: a call that only prefetches counts as one without an effect, and would be left out.
  [[gnu::always_inline]] void fetch_keys(int g, int slot0) const { fetch(k_, g, slot0); }
  [[gnu::always_inline]] void fetch_values(int g, int slot0) const { fetch(v_, g, slot0); }

 private:
  [[gnu::always_inline]] void fetch(const KvPages& pages, int g, int slot0) const {
    if (slot0 < first_ || slot0 >= end_) return;
    const int rows = tiled_ ? 1 : std::min(kBlock, end_ - slot0);
    const int bytes = D * int(sizeof(T)) * (tiled_ ? kBlock : 1);
    for (int i = 0; i < rows; ++i) {
      const void* from = tiled_ ? tile(pages, g, slot0) : row(pages, g, slot0 + i);
      for (int at = 0; at < bytes; at += 64) __builtin_prefetch(static_cast<const char*>(from) + at);
    }
  }
  int64_t page_of(int slot, int& offset) const {
    const int index = shift_ >= 0 ? slot >> shift_ : slot / S;  // a division costs as much as a row of values
    offset = slot - index * S;
    return table_[index];
  }
  const T* row(const KvPages& pages, int g, int slot) const {
    int offset;
    const int64_t page = page_of(slot, offset);
    return static_cast<const T*>(pages.data) + page * pages.stride_p + offset * pages.stride_s +
           g * pages.stride_g;
  }
  // Slot (a multiple of 16 for keys, of 2 for 16-bit values) in the tiled layout.
  const T* tile(const KvPages& pages, int g, int slot) const {
    int offset;
    const int64_t page = page_of(slot, offset);
    return static_cast<const T*>(pages.data) + page * pages.stride_p + (int64_t(g) * S + offset) * D;
  }
  // Row of a value, of its pair in the tiled layout of 16-bit values.
  const T* value_row(int g, int slot) const {
    if (!tiled_) return row(v_, g, slot);
    return tile(v_, g, sizeof(T) == 2 ? slot & ~1 : slot);
  }
  // Two rows of 16 operands.
  static void put_rows(A* to, F32 even, F32 odd) {
    if constexpr (kDots<kType>) {
      istore(reinterpret_cast<int32_t*>(to), pair(even, odd));
    } else {
      store(to, even);
      store(to + kLanes, odd);
    }
  }
  static void widen_rows_to(const T* from, int64_t stride, A* to) {
    F32 even, odd;
    widen_rows<kType>(from, stride, even, odd);
    put_rows(to, even, odd);
  }

  const KvPages k_, v_;
  const int32_t* const table_;
  const int D, S, G, shift_;
  const bool tiled_;
  int first_ = 0, end_ = 0;
};

}  // namespace pyspec::PYSPEC_ISA
