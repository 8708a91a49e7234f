// SPDX-License-Identifier: Apache-2.0
// silu_mul and gelu_mul on torch tensors of any device with a kernel: checks, then one launch.
#pragma once

#include <ATen/ops/empty.h>

#include "bind/check.h"
#include "bind/launch.h"
#include "pyspec/silu_mul.h"

namespace pyspec {

template <Launch<SiluMulParams> kLaunch>
at::Tensor gated(const char* op, const at::Tensor& gate_up, bool gelu) {
  Dim M{"M"}, N{"N"};
  Checker check(op);
  check.tensor("gate_up", gate_up, {M, N}, {at::kFloat});
  check.value(N.size % 2 == 0, "gate_up", "[M, N] with N even", list_text(gate_up.sizes()));
  const at::Tensor rows = gate_up.stride(1) == 1 ? gate_up : gate_up.contiguous();
  at::Tensor out = at::empty({M.size, N.size / 2}, gate_up.options());
  kLaunch(gate_up.device(), {rows.const_data_ptr<float>(), out.mutable_data_ptr<float>(), gelu, M.size,
                             N.size / 2, rows.stride(0), N.size / 2});
  return out;
}

template <Launch<SiluMulParams> kLaunch>
at::Tensor silu_mul(const at::Tensor& gate_up) {
  return gated<kLaunch>("silu_mul", gate_up, false);
}

template <Launch<SiluMulParams> kLaunch>
at::Tensor gelu_mul(const at::Tensor& gate_up) {
  return gated<kLaunch>("gelu_mul", gate_up, true);
}

}  // namespace pyspec
