// SPDX-License-Identifier: Apache-2.0
// The order of tokens, value descending, then id ascending, as integers; how they are sorted, and the n-th
// largest of some values. Included after cpu/kernel.h.
#pragma once

namespace pyspec::PYSPEC_ISA {

// Ascending keys are the order: value descending, then id ascending.
inline uint64_t make_key(float value, int64_t id) {
  const uint32_t bits = f32_to_bits(value);
  const uint32_t descending = bits >> 31 ? bits : ~bits & 0x7fffffffu;
  return uint64_t(descending) << 32 | uint64_t(id);
}
inline float key_value(uint64_t key) {
  const uint32_t descending = uint32_t(key >> 32);
  return bits_to_f32(descending >> 31 ? descending : ~descending & 0x7fffffffu);
}

// Sorts keys[0 .. n) that stand in order of id: by insertion, or by a stable radix sort of the values'
// 11-bit digits, after which keys and spare may have changed places.
inline void sort_keys(uint64_t*& keys, uint64_t*& spare, int64_t n) {
  if (n <= 48) {
    for (int64_t i = 1; i < n; ++i) {
      const uint64_t key = keys[i];
      int64_t j = i;
      for (; j > 0 && keys[j - 1] > key; --j) keys[j] = keys[j - 1];
      keys[j] = key;
    }
    return;
  }
  constexpr int kDigits = 3, kBits = 11, kBuckets = 1 << kBits;
  uint32_t count[kDigits][kBuckets] = {};
  for (int64_t i = 0; i < n; ++i)
    for (int d = 0; d < kDigits; ++d) ++count[d][keys[i] >> (32 + d * kBits) & (kBuckets - 1)];
  for (int d = 0; d < kDigits; ++d) {
    const int shift = 32 + d * kBits;
    if (count[d][keys[0] >> shift & (kBuckets - 1)] == uint64_t(n)) continue;  // all have this digit
    uint32_t start = 0;
    for (uint32_t& bucket : count[d]) bucket = std::exchange(start, start + bucket);
    for (int64_t i = 0; i < n; ++i) spare[count[d][keys[i] >> shift & (kBuckets - 1)]++] = keys[i];
    std::swap(keys, spare);
  }
}

// The n-th largest (from 0) of values[0 .. size), which are moved about.
inline float nth_largest(float* values, int64_t size, int64_t n) {
  int64_t first = 0, last = size - 1;
  while (first < last) {
    const float pivot = values[first + (last - first) / 2];
    int64_t i = first, j = last;
    while (i <= j) {
      while (values[i] > pivot) ++i;
      while (values[j] < pivot) --j;
      if (i <= j) std::swap(values[i++], values[j--]);
    }
    if (n <= j) {
      last = j;
    } else if (n >= i) {
      first = i;
    } else {
      break;
    }
  }
  return values[n];
}

}  // namespace pyspec::PYSPEC_ISA
