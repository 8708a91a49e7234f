// SPDX-License-Identifier: Apache-2.0
// Which request a flat row belongs to. Used by verify_tree, build_tree and edit_logits.
#pragma once

#include <cstdint>

#include "cuda/ptx.cuh"

namespace pyspec::cuda {

// The request b with cu_t[b] <= row < cu_t[b + 1]; -1 if there is none.
__device__ inline int64_t request_of(const int32_t* cu_t, int64_t B, int64_t row) {
  int64_t low = 0, high = B + 1;  // the first offset beyond `row` is in [low, high]
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (cu_t[middle] <= row) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low > B ? -1 : low - 1;
}

}  // namespace pyspec::cuda
