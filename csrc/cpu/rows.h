// SPDX-License-Identifier: Apache-2.0
// Rows of D elements in the three element types, RoPE on one row, and one slot of the KV cache as a strided
// row. Included inside kernel files, after cpu/kernel.h.
#pragma once

#include "cpu/kernel.h"
#include "pyspec/kv_pages.h"

namespace pyspec::PYSPEC_ISA {

// Sixteen elements from element i on.
inline F32 load_as(const void* base, int64_t i, DType dtype) {
  if (dtype == DType::kF32) return load(static_cast<const float*>(base) + i);
  const uint16_t* p = static_cast<const uint16_t*>(base) + i;
  return dtype == DType::kBF16 ? load_bf16(p) : load_f16(p);
}
inline void store_as(void* base, int64_t i, F32 x, DType dtype) {
  if (dtype == DType::kF32) return store(static_cast<float*>(base) + i, x);
  uint16_t* p = static_cast<uint16_t*>(base) + i;
  dtype == DType::kBF16 ? store_bf16(p, x) : store_f16(p, x);
}

inline void widen_row(const void* from, int64_t at, int64_t D, DType dtype, float* to) {
  int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes) store(to + d, load_as(from, at + d, dtype));
  for (; d < D; ++d) {
    if (dtype == DType::kF32) {
      to[d] = static_cast<const float*>(from)[at + d];
    } else {
      const uint16_t x = static_cast<const uint16_t*>(from)[at + d];
      to[d] = dtype == DType::kBF16 ? bf16_to_f32(x) : f16_to_f32(x);
    }
  }
}
inline void narrow_row(const float* from, int64_t D, DType dtype, void* to, int64_t at) {
  int64_t d = 0;
  for (; d + kLanes <= D; d += kLanes) store_as(to, at + d, load(from + d), dtype);
  for (; d < D; ++d) {
    if (dtype == DType::kF32) {
      static_cast<float*>(to)[at + d] = from[d];
    } else {
      static_cast<uint16_t*>(to)[at + d] = dtype == DType::kBF16 ? f32_to_bf16(from[d]) : f32_to_f16(from[d]);
    }
  }
}

// RoPE of the first Y elements in place; `angles` holds Y/2 cosines, then Y/2 sines.
inline void rotate_row(float* x, const float* angles, int64_t Y, bool interleaved) {
  const int64_t half = Y / 2, step = interleaved ? 2 : 1, other = interleaved ? 1 : half;
  int64_t i = 0;
  if (!interleaved) {
    for (; i + kLanes <= half; i += kLanes) {
      const F32 a = load(x + i), b = load(x + half + i), cosine = load(angles + i),
                sine = load(angles + half + i);
      store(x + i, fma(a, cosine, b * (sine * set1(-1.0f))));
      store(x + half + i, fma(b, cosine, a * sine));
    }
  }
  for (; i < half; ++i) {
    const float a = x[i * step], b = x[i * step + other], cosine = angles[i], sine = angles[half + i];
    x[i * step] = __builtin_fmaf(a, cosine, -(b * sine));
    x[i * step + other] = __builtin_fmaf(b, cosine, a * sine);
  }
}

// A row as int8, rounded to nearest even, and its scale, max |x| / 127: pyspec/spec/append_kv.py. A row
// without a scale above 0 is zeros.
inline float quantize_row(const float* x, int64_t D, int8_t* to) {
  uint32_t most = 0;  // the bits of |x| are ordered as its values are, infinity and NaN above all
  for (int64_t d = 0; d < D; ++d) most = std::max(most, f32_to_bits(x[d]) & 0x7fffffffu);
  float scale = bits_to_f32(most) >= 1e-30f ? bits_to_f32(most) / 127.0f : 0.0f;
  if (most >= 0x7f800000u) scale = std::numeric_limits<float>::quiet_NaN();
  int64_t d = 0;
  if (scale > 0) {
    const F32 divisor = set1(scale);
    for (; d + kLanes <= D; d += kLanes) store_i8(to + d, round_i32(load(x + d) / divisor));
    for (; d < D; ++d) to[d] = int8_t(__builtin_rintf(x[d] / scale));
  }
  std::fill(to + d, to + D, int8_t(0));
  return scale;
}

// One slot of one KV head: `count` units of `width` bytes (1, 2 or 4), `stride` units apart.
struct Slot {
  char* data;
  int64_t count, stride, width;
};
enum class Kv { kKey, kValue };

inline Slot slot_of(const KvPages& pages, Kv kv, KvLayout layout, DType dtype, int64_t page, int64_t s,
                    int64_t g, int64_t S, int64_t D) {
  const int64_t width = size_of(dtype);
  char* data = static_cast<char*>(pages.data) + page * pages.stride_p * width;
  if (layout == KvLayout::kPaged)
    return {data + (s * pages.stride_s + g * pages.stride_g) * width, D, 1, width};
  if (kv == Kv::kValue)
    return {data + tiled_v_index(s, g, 0, S, D, dtype) * width, D, width == 2 ? 2 : 1, width};
  data += tiled_k_index(s, g, 0, S, D, dtype) * width;
  if (width == 2) return {data, D / 2, 16, 4};  // keys lie in pairs: units of 4 bytes
  return {data, D, 16, width};
}

template <typename T>
inline void copy_units(const char* from, int64_t from_stride, char* to, int64_t to_stride, int64_t count) {
  const T* source = reinterpret_cast<const T*>(from);
  T* target = reinterpret_cast<T*>(to);
  for (int64_t i = 0; i < count; ++i) target[i * to_stride] = source[i * from_stride];
}
// Between slots of the same kind and layout, or between a slot and a contiguous row (stride 1, same width).
inline void copy_slot(const Slot& from, const Slot& to) {
  if (from.stride == 1 && to.stride == 1) {
    std::memmove(to.data, from.data, from.count * from.width);
  } else if (from.width == 4) {
    copy_units<uint32_t>(from.data, from.stride, to.data, to.stride, from.count);
  } else if (from.width == 2) {
    copy_units<uint16_t>(from.data, from.stride, to.data, to.stride, from.count);
  } else {
    copy_units<uint8_t>(from.data, from.stride, to.data, to.stride, from.count);
  }
}
// Asks for the cache lines of a slot, which is to be written: side by side they come in a fraction of the
// time that stores take to wait for one after another.
inline void prefetch_slot(const Slot& slot) {
  const int64_t units = std::max<int64_t>(1, 64 / (slot.stride * slot.width));
  for (int64_t i = 0; i < slot.count; i += units)
    __builtin_prefetch(slot.data + i * slot.stride * slot.width, 1);
}
inline Slot contiguous_like(const Slot& slot, void* data) {
  return {static_cast<char*>(data), slot.count, 1, slot.width};
}

}  // namespace pyspec::PYSPEC_ISA
