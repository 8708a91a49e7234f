// SPDX-License-Identifier: Apache-2.0
// The KV cache as kernels see it: pages [P, S, G, D] in one of two layouts, and where an element lies.
#pragma once

#include <cstdint>

#include "pyspec/dtype.h"

namespace pyspec {

enum class KvLayout : int {
  kPaged,  // [P, S, G, D], any page size
  // Operands of the CPU kernels as they lie, in the same storage (S % 16 == 0, D % 2 == 0):
  //   16-bit: K page [G][S/16][D/2][16][2], V page [G][S/2][D][2]
  //   f32, i8: K page [G][S/16][D][16], V page [G][S][D]
  kTiled,
};

// K or V of one layer. Strides in elements; the last dimension is contiguous. Tiled pages use stride_p only.
struct KvPages {
  void* data;
  int64_t stride_p, stride_s, stride_g;
};

// Element (s, g, d) of K within its page in the tiled layout.
inline int64_t tiled_k_index(int64_t s, int64_t g, int64_t d, int64_t S, int64_t D, DType dtype) {
  const int64_t tile = (g * S + s / 16 * 16) * D;
  return size_of(dtype) == 2 ? tile + d / 2 * 32 + s % 16 * 2 + d % 2 : tile + d * 16 + s % 16;
}
// Element (s, g, d) of V within its page in the tiled layout.
inline int64_t tiled_v_index(int64_t s, int64_t g, int64_t d, int64_t S, int64_t D, DType dtype) {
  return size_of(dtype) == 2 ? (g * S + s / 2 * 2) * D + d * 2 + s % 2 : (g * S + s) * D + d;
}

}  // namespace pyspec
