// SPDX-License-Identifier: Apache-2.0
// rms_norm_quantize on torch tensors of any device with a kernel: checks, then one launch.
#pragma once

#include <ATen/ops/empty.h>

#include <tuple>

#include "bind/check.h"
#include "bind/launch.h"
#include "pyspec/rms_norm_quantize.h"

namespace pyspec {

template <Launch<RmsNormQuantizeParams> kLaunch>
std::tuple<at::Tensor, at::Tensor> rms_norm_quantize(const at::Tensor& x, const at::Tensor& weight,
                                                     const std::optional<at::Tensor>& residual, double eps) {
  Dim M{"M"}, K{"K"};
  Checker check("rms_norm_quantize");
  check.tensor("x", x, {M, K}, {at::kFloat});
  check.tensor("weight", weight, {K}, {at::kFloat});
  if (residual) check.tensor("residual", *residual, {M, K}, {at::kFloat});
  check.value(K.size >= 1, "x", "[M, K] with K >= 1", list_text(x.sizes()));
  const at::Tensor rows = x.stride(1) == 1 ? x : x.contiguous(), w = weight.contiguous();
  const at::Tensor sum = residual ? residual->contiguous() : at::Tensor();
  at::Tensor q = at::empty({M.size, K.size}, x.options().dtype(at::kChar));
  at::Tensor scale = at::empty({M.size}, x.options());
  kLaunch(x.device(), {rows.const_data_ptr<float>(), residual ? sum.mutable_data_ptr<float>() : nullptr,
                       w.const_data_ptr<float>(), q.mutable_data_ptr<int8_t>(),
                       scale.mutable_data_ptr<float>(), M.size, K.size, rows.stride(0), float(eps)});
  if (residual && !sum.is_same(*residual)) residual->copy_(sum);
  return {q, scale};
}

}  // namespace pyspec
