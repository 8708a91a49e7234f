// SPDX-License-Identifier: Apache-2.0
// quantize_activations on torch tensors of any device with a kernel: checks, then one launch.
#pragma once

#include <ATen/ops/empty.h>

#include <tuple>

#include "bind/check.h"
#include "bind/launch.h"
#include "pyspec/quantize_activations.h"

namespace pyspec {

template <Launch<QuantizedRowsParams> kLaunch>
std::tuple<at::Tensor, at::Tensor, at::Tensor> quantize_activations(const at::Tensor& x) {
  Dim M{"M"}, K{"K"};
  Checker check("quantize_activations");
  check.tensor("x", x, {M, K}, {at::kFloat});
  const int64_t m = M.size, k = K.size, groups = k / kGroup;
  check.value(k % kGroup == 0, "x", "[M, K] with K a multiple of 32", list_text(x.sizes()));
  const at::Tensor rows = x.stride(1) == 1 ? x : x.contiguous();
  at::Tensor q = at::empty({m, k}, x.options().dtype(at::kChar));
  at::Tensor scale = at::empty({m, groups}, x.options());
  at::Tensor sums = at::empty({m, groups, 2}, x.options().dtype(at::kInt));
  kLaunch(x.device(),
          {rows.const_data_ptr<float>(), q.mutable_data_ptr<int8_t>(), scale.mutable_data_ptr<float>(),
           sums.mutable_data_ptr<int32_t>(), m, k, rows.stride(0)});
  return {q, scale, sums};
}

}  // namespace pyspec
