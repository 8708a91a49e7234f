// SPDX-License-Identifier: Apache-2.0
// torch binding of pack_int8_weight.
#include "pyspec/pack_int8_weight.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "bind/check.h"

namespace pyspec {
namespace {

at::Tensor pack_int8_weight(const at::Tensor& weight) {
  Dim N{"N"}, K{"K"};
  Checker check("pack_int8_weight");
  check.tensor("weight", weight, {N, K}, {at::kChar});
  const at::Tensor w = weight.stride(1) == 1 ? weight : weight.contiguous();
  at::Tensor packed =
      at::empty({(N.size + 15) / 16, packed_int8_block_bytes(K.size)}, w.options().dtype(at::kByte));
  pack_int8_weight_cpu(
      {w.const_data_ptr<int8_t>(), packed.mutable_data_ptr<uint8_t>(), N.size, K.size, w.stride(0)});
  return packed;
}

}  // namespace

TORCH_LIBRARY_IMPL(pyspec, CPU, m) { m.impl("pack_int8_weight", pack_int8_weight); }

}  // namespace pyspec
