// SPDX-License-Identifier: Apache-2.0
// torch binding of rms_norm and add_rms_norm.
#include "pyspec/rms_norm.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "bind/check.h"

namespace pyspec {
namespace {

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  Dim M{"M"}, K{"K"};
  Checker check("rms_norm");
  check.tensor("x", x, {M, K}, {at::kFloat});
  check.tensor("weight", weight, {K}, {at::kFloat});
  const at::Tensor rows = x.stride(1) == 1 ? x : x.contiguous(), w = weight.contiguous();
  at::Tensor out = at::empty({M.size, K.size}, x.options());
  rms_norm_cpu({rows.const_data_ptr<float>(), nullptr, w.const_data_ptr<float>(),
                out.mutable_data_ptr<float>(), M.size, K.size, rows.stride(0), float(eps)});
  return out;
}

at::Tensor add_rms_norm(at::Tensor& residual, const at::Tensor& delta, const at::Tensor& weight, double eps) {
  Dim M{"M"}, K{"K"};
  Checker check("add_rms_norm");
  check.tensor("residual", residual, {M, K}, {at::kFloat});
  check.tensor("delta", delta, {M, K}, {at::kFloat});
  check.tensor("weight", weight, {K}, {at::kFloat});
  at::Tensor sum = residual.contiguous();
  const at::Tensor rows = delta.stride(1) == 1 ? delta : delta.contiguous(), w = weight.contiguous();
  at::Tensor out = at::empty({M.size, K.size}, residual.options());
  rms_norm_cpu({rows.const_data_ptr<float>(), sum.mutable_data_ptr<float>(), w.const_data_ptr<float>(),
                out.mutable_data_ptr<float>(), M.size, K.size, rows.stride(0), float(eps)});
  if (!sum.is_same(residual)) residual.copy_(sum);
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(pyspec, CPU, m) {
  m.impl("rms_norm", rms_norm);
  m.impl("add_rms_norm", add_rms_norm);
}

}  // namespace pyspec
