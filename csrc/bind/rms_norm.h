// SPDX-License-Identifier: Apache-2.0
// rms_norm and add_rms_norm on torch tensors of any device with a kernel: checks, then one launch.
#pragma once

#include <ATen/ops/empty.h>

#include "bind/check.h"
#include "bind/launch.h"
#include "pyspec/rms_norm.h"

namespace pyspec {

template <Launch<RmsNormParams> kLaunch>
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  Dim M{"M"}, K{"K"};
  Checker check("rms_norm");
  check.tensor("x", x, {M, K}, {at::kFloat});
  check.tensor("weight", weight, {K}, {at::kFloat});
  const at::Tensor rows = x.stride(1) == 1 ? x : x.contiguous(), w = weight.contiguous();
  at::Tensor out = at::empty({M.size, K.size}, x.options());
  kLaunch(x.device(), {rows.const_data_ptr<float>(), nullptr, w.const_data_ptr<float>(),
                       out.mutable_data_ptr<float>(), M.size, K.size, rows.stride(0), float(eps)});
  return out;
}

template <Launch<RmsNormParams> kLaunch>
at::Tensor add_rms_norm(at::Tensor& residual, const at::Tensor& delta, const at::Tensor& weight, double eps) {
  Dim M{"M"}, K{"K"};
  Checker check("add_rms_norm");
  check.tensor("residual", residual, {M, K}, {at::kFloat});
  check.tensor("delta", delta, {M, K}, {at::kFloat});
  check.tensor("weight", weight, {K}, {at::kFloat});
  at::Tensor sum = residual.contiguous();
  const at::Tensor rows = delta.stride(1) == 1 ? delta : delta.contiguous(), w = weight.contiguous();
  at::Tensor out = at::empty({M.size, K.size}, residual.options());
  kLaunch(residual.device(),
          {rows.const_data_ptr<float>(), sum.mutable_data_ptr<float>(), w.const_data_ptr<float>(),
           out.mutable_data_ptr<float>(), M.size, K.size, rows.stride(0), float(eps)});
  if (!sum.is_same(residual)) residual.copy_(sum);
  return out;
}

}  // namespace pyspec
