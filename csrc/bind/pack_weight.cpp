// SPDX-License-Identifier: Apache-2.0
// torch binding of pack_weight.
#include "pyspec/pack_weight.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "bind/check.h"

namespace pyspec {
namespace {

at::Tensor pack_weight(const at::Tensor& weight) {
  Dim N{"N"}, K{"K"};
  Checker check("pack_weight");
  check.tensor("weight", weight, {N, K}, {at::kFloat, at::kBFloat16});
  const at::Tensor w = weight.stride(1) == 1 ? weight : weight.contiguous();
  at::Tensor packed = at::empty({(N.size + 15) / 16, packed_block_elements(K.size)}, weight.options());
  pack_weight_cpu({w.const_data_ptr(), packed.mutable_data_ptr(), to_dtype(weight.scalar_type()), N.size,
                   K.size, w.stride(0)});
  return packed;
}

}  // namespace

TORCH_LIBRARY_IMPL(pyspec, CPU, m) { m.impl("pack_weight", pack_weight); }

}  // namespace pyspec
