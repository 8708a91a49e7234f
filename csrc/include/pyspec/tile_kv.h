// SPDX-License-Identifier: Apache-2.0
// tile_kv: launch interface. Spec: pyspec/spec/tile_kv.py.
#pragma once

#include "pyspec/kv_pages.h"

namespace pyspec {

struct TileKvParams {
  const void *k, *v;    // [P, S, G, D] contiguous, paged layout (tiled if inverse)
  void *k_out, *v_out;  // the same in the other layout; must not overlap the inputs
  int64_t P, S, G, D;
  DType dtype;
  bool inverse;
};

void tile_kv_cpu(const TileKvParams& p);

}  // namespace pyspec
