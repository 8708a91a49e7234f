// SPDX-License-Identifier: Apache-2.0
// linear on torch tensors of any device with a kernel: checks, then one launch.
#pragma once

#include <ATen/ops/empty.h>

#include "bind/check.h"
#include "bind/rows.h"
#include "pyspec/linear.h"

namespace pyspec {

template <Launch<LinearParams> kLaunch, Place kPlace>
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  Dim M{"M"}, N{"N"}, K{"K"};
  Checker check("linear");
  check.tensor("x", x, {M, K}, {at::kFloat, at::kBFloat16});
  check.tensor("weight", weight, {N, K}, {at::kFloat, at::kBFloat16});
  if (bias) check.tensor("bias", *bias, {N}, {at::kFloat});
  const bool widen = weight.scalar_type() == at::kFloat;  // f32 weights meet f32 rows
  const at::Tensor xs = rows_for(kPlace, widen ? x.to(at::kFloat) : x);
  const at::Tensor w = weight.stride(1) == 1 ? weight : weight.contiguous();
  const at::Tensor b = bias ? bias->contiguous() : at::Tensor();
  at::Tensor out = at::empty({M.size, N.size}, x.options().dtype(at::kFloat));
  kLaunch(x.device(), {xs.const_data_ptr(), w.const_data_ptr(), bias ? b.const_data_ptr<float>() : nullptr,
                       out.mutable_data_ptr<float>(), to_dtype(weight.scalar_type()), false, M.size, N.size,
                       K.size, xs.stride(0), w.stride(0), N.size, to_dtype(xs.scalar_type())});
  return out;
}

}  // namespace pyspec
