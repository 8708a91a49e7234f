// SPDX-License-Identifier: Apache-2.0
// torch bindings of silu_mul and gelu_mul.
#include "pyspec/silu_mul.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "bind/check.h"

namespace pyspec {
namespace {

at::Tensor gated(const char* op, const at::Tensor& gate_up, bool gelu) {
  Dim M{"M"}, N{"N"};
  Checker check(op);
  check.tensor("gate_up", gate_up, {M, N}, {at::kFloat});
  check.value(N.size % 2 == 0, "gate_up", "[M, N] with N even", list_text(gate_up.sizes()));
  const at::Tensor rows = gate_up.stride(1) == 1 ? gate_up : gate_up.contiguous();
  at::Tensor out = at::empty({M.size, N.size / 2}, gate_up.options());
  silu_mul_cpu({rows.const_data_ptr<float>(), out.mutable_data_ptr<float>(), gelu, M.size, N.size / 2,
                rows.stride(0), N.size / 2});
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(pyspec, CPU, m) {
  m.impl("silu_mul", [](const at::Tensor& gate_up) { return gated("silu_mul", gate_up, false); });
  m.impl("gelu_mul", [](const at::Tensor& gate_up) { return gated("gelu_mul", gate_up, true); });
}

}  // namespace pyspec
