// SPDX-License-Identifier: Apache-2.0
// w8a8_linear on torch tensors of any device with a kernel: checks, then one launch.
#pragma once

#include <ATen/ops/empty.h>

#include "bind/check.h"
#include "bind/rows.h"
#include "pyspec/w8a8_linear.h"

namespace pyspec {

// What no shape says: the dtype of the result, and that int32 sums cannot overflow.
inline void check_w8a8(const Checker& check, const at::Tensor& x, at::ScalarType out_dtype) {
  check.type(out_dtype == at::kFloat || out_dtype == at::kBFloat16 || out_dtype == at::kHalf, "out_dtype",
             "f32|bf16|f16", dtype_name(out_dtype));
  check.value(x.size(1) < 1 << 17, "x", "[M, K] with K < 131072", list_text(x.sizes()));
}

template <Launch<W8A8LinearParams> kLaunch, Place kPlace>
at::Tensor w8a8_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& x_scale,
                       const at::Tensor& w_scale, at::ScalarType out_dtype) {
  Dim M{"M"}, N{"N"}, K{"K"};
  Checker check("w8a8_linear");
  check.tensor("x", x, {M, K}, {at::kChar});
  check.tensor("weight", weight, {N, K}, {at::kChar});
  check.tensor("x_scale", x_scale, {M}, {at::kFloat});
  check.tensor("w_scale", w_scale, {N}, {at::kFloat});
  check_w8a8(check, x, out_dtype);
  const at::Tensor xs = kPlace == Place::kGpu ? padded_rows(x) : x.stride(1) == 1 ? x : x.contiguous();
  const at::Tensor w = weight.stride(1) == 1 ? weight : weight.contiguous();
  const at::Tensor row = x_scale.contiguous(), channel = w_scale.contiguous();
  at::Tensor out = at::empty({M.size, N.size}, x.options().dtype(out_dtype));
  kLaunch(x.device(), {xs.const_data_ptr<int8_t>(), w.const_data_ptr<int8_t>(), row.const_data_ptr<float>(),
                       channel.const_data_ptr<float>(), out.mutable_data_ptr(), to_dtype(out_dtype), M.size,
                       N.size, K.size, xs.stride(0), w.stride(0)});
  return out;
}

}  // namespace pyspec
