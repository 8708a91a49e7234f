// SPDX-License-Identifier: Apache-2.0
// w4a16_linear on torch tensors of any device with a kernel: checks, then one launch.
#pragma once

#include <ATen/ops/empty.h>

#include "bind/check.h"
#include "bind/rows.h"
#include "pyspec/w4a16_linear.h"

namespace pyspec {

template <Launch<W4A16LinearParams> kLaunch, Place kPlace>
at::Tensor w4a16_linear(const at::Tensor& x, const at::Tensor& qweight, const at::Tensor& scales,
                        const std::optional<at::Tensor>& zeros, const std::optional<at::Tensor>& g_idx,
                        int64_t group_size) {
  Dim M{"M"}, N{"N"}, K{"K"}, J{"J"};
  Checker check("w4a16_linear");
  check.tensor("x", x, {M, K}, {at::kFloat, at::kBFloat16});
  check.tensor("qweight", qweight, {N, DimRef("K/2", K.size / 2)}, {at::kByte});
  check.tensor("scales", scales, {N, J}, {at::kHalf, at::kBFloat16, at::kFloat});
  if (zeros) check.tensor("zeros", *zeros, {N, J}, {scales.scalar_type()});
  if (g_idx) check.tensor("g_idx", *g_idx, {K}, {at::kInt});
  const bool whole = group_size == -1;
  check.value(whole || group_size == 32 || group_size == 64 || group_size == 128, "group_size",
              "32|64|128|-1", group_size);
  const int64_t multiple = whole ? 2 : group_size;
  check.value(K.size > 0 && K.size % multiple == 0, "x",
              "[M, K] with K a multiple of " + std::to_string(multiple), list_text(x.sizes()));
  const int64_t groups = whole ? 1 : K.size / group_size;
  check.value(J.size == groups, "scales", "[N, J] with J=" + std::to_string(groups) + " (K / group_size)",
              list_text(scales.sizes()));
  const at::Tensor idx = g_idx ? g_idx->contiguous() : at::Tensor();
  const int32_t* group_of = g_idx ? idx.const_data_ptr<int32_t>() : nullptr;
  for (int64_t k = 0; kPlace == Place::kCpu && group_of && k < K.size; ++k)
    check.value(group_of[k] >= 0 && group_of[k] < groups, "g_idx", "in [0, " + std::to_string(groups) + ")",
                group_of[k]);
  const at::Tensor xs = rows_for(kPlace, x), q = qweight.contiguous(), s = scales.contiguous();
  const at::Tensor z = zeros ? zeros->contiguous() : at::Tensor();
  at::Tensor out = at::empty({M.size, N.size}, x.options().dtype(at::kFloat));
  kLaunch(x.device(), {xs.const_data_ptr(), q.const_data_ptr<uint8_t>(), s.const_data_ptr(),
                       zeros ? z.const_data_ptr() : nullptr, group_of, out.mutable_data_ptr<float>(),
                       to_dtype(scales.scalar_type()), M.size, N.size, K.size, groups,
                       whole ? K.size : group_size, xs.stride(0), to_dtype(xs.scalar_type())});
  return out;
}

}  // namespace pyspec
