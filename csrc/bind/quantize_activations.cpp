// SPDX-License-Identifier: Apache-2.0
// torch binding of quantize_activations on the CPU, whose kernel writes the tiles that its products read.
#include "bind/quantize_activations.h"

#include <torch/library.h>

namespace pyspec {
namespace {

void quantize_rows(at::Device, const QuantizedRowsParams& p) {
  at::Tensor workspace = at::empty({activation_bytes(p.M, p.K)}, at::kByte);
  quantize_activations_cpu({p.x, workspace.mutable_data_ptr(), p.M, p.K, p.x_stride_m});
  const Activations a(workspace.mutable_data_ptr(), p.M, p.K);
  const int64_t groups = p.K / kGroup;
  for (int64_t m = 0; m < p.M; ++m) {  // out of the workspace's tiles
    const int64_t first = m / kRowTile * kRowTile, R = std::min(kRowTile, p.M - first), r = m - first;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t tile = first * groups + g * R;
      std::memcpy(p.q + m * p.K + g * kGroup, a.q + (tile + r) * kGroup, kGroup);
      p.scale[m * groups + g] = a.scale[tile + r];
      for (int64_t half = 0; half < 2; ++half)
        p.sums[(m * groups + g) * 2 + half] = -a.negative_sums[tile * 3 + (half + 1) * R + r];
    }
  }
}

}  // namespace

TORCH_LIBRARY_IMPL(pyspec, CPU, m) { m.impl("quantize_activations", quantize_activations<quantize_rows>); }

}  // namespace pyspec
