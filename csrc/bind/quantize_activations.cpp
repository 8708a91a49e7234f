// SPDX-License-Identifier: Apache-2.0
// torch binding of quantize_activations.
#include "pyspec/quantize_activations.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "bind/check.h"

namespace pyspec {
namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor> quantize_activations(const at::Tensor& x) {
  Dim M{"M"}, K{"K"};
  Checker check("quantize_activations");
  check.tensor("x", x, {M, K}, {at::kFloat});
  const int64_t m = M.size, k = K.size, groups = k / kGroup;
  check.value(k % kGroup == 0, "x", "[M, K] with K a multiple of 32", list_text(x.sizes()));
  const at::Tensor rows = x.stride(1) == 1 ? x : x.contiguous();
  at::Tensor workspace = at::empty({activation_bytes(m, k)}, x.options().dtype(at::kByte));
  quantize_activations_cpu(
      {rows.const_data_ptr<float>(), workspace.mutable_data_ptr(), m, k, rows.stride(0)});
  at::Tensor q = at::empty({m, k}, x.options().dtype(at::kChar));
  at::Tensor scale = at::empty({m, groups}, x.options());
  at::Tensor sums = at::empty({m, groups, 2}, x.options().dtype(at::kInt));
  const Activations a(workspace.mutable_data_ptr(), m, k);
  for (int64_t i = 0; i < m; ++i) {  // out of the workspace's tiles
    const int64_t first = i / kRowTile * kRowTile, R = std::min(kRowTile, m - first), r = i - first;
    for (int64_t g = 0; g < groups; ++g) {
      const int64_t tile = first * groups + g * R;
      std::memcpy(q.mutable_data_ptr<int8_t>() + i * k + g * kGroup, a.q + (tile + r) * kGroup, kGroup);
      scale.mutable_data_ptr<float>()[i * groups + g] = a.scale[tile + r];
      for (int64_t half = 0; half < 2; ++half)
        sums.mutable_data_ptr<int32_t>()[(i * groups + g) * 2 + half] =
            -a.negative_sums[tile * 3 + (half + 1) * R + r];
    }
  }
  return {q, scale, sums};
}

}  // namespace

TORCH_LIBRARY_IMPL(pyspec, CPU, m) { m.impl("quantize_activations", quantize_activations); }

}  // namespace pyspec
