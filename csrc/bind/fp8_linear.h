// SPDX-License-Identifier: Apache-2.0
// fp8_linear on torch tensors of any device with a kernel: checks, then one launch.
#pragma once

#include <ATen/ops/empty.h>

#include <string_view>

#include "bind/check.h"
#include "bind/rows.h"
#include "pyspec/fp8_linear.h"

namespace pyspec {

template <Launch<Fp8LinearParams> kLaunch>
at::Tensor fp8_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& scale,
                      std::string_view granularity) {
  constexpr int64_t kBlock = 128;
  Dim M{"M"}, N{"N"}, K{"K"}, X{"X"}, Y{"Y"};
  Checker check("fp8_linear");
  check.tensor("x", x, {M, K}, {at::kFloat, at::kBFloat16});
  check.tensor("weight", weight, {N, K}, {at::kFloat8_e4m3fn});
  check.tensor("scale", scale, {X, Y}, {at::kFloat});
  const bool block = granularity == "block", channel = granularity == "channel";
  check.value(block || channel || granularity == "tensor", "granularity", "tensor|channel|block",
              granularity);
  const int64_t rows = block ? (N.size + kBlock - 1) / kBlock : channel ? N.size : 1;
  const int64_t columns = block ? (K.size + kBlock - 1) / kBlock : 1;
  check.value(X.size == rows && Y.size == columns, "scale",
              "[X, Y] with X=" + std::to_string(rows) + ", Y=" + std::to_string(columns) + " (granularity " +
                  std::string(granularity) + ")",
              list_text(scale.sizes()));
  const at::Tensor xs = padded_rows(x), w = weight.stride(1) == 1 ? weight : weight.contiguous();
  const at::Tensor s = scale.contiguous();
  at::Tensor out = at::empty({M.size, N.size}, x.options().dtype(at::kFloat));
  const int shift_n = block ? 7 : channel ? 0 : 31, shift_k = block ? 7 : 31;
  kLaunch(x.device(), {xs.const_data_ptr(), static_cast<const uint8_t*>(w.const_data_ptr()),
                       s.const_data_ptr<float>(), out.mutable_data_ptr<float>(), M.size, N.size, K.size,
                       xs.stride(0), w.stride(0), columns, shift_n, shift_k, to_dtype(xs.scalar_type())});
  return out;
}

}  // namespace pyspec
