// SPDX-License-Identifier: Apache-2.0
// torch binding of quant_linear on the CPU.
#include "bind/quant_linear.h"

#include <torch/library.h>

namespace pyspec {
namespace {

at::Tensor quant_linear_on_cpu(const at::Tensor& x, const at::Tensor& qweight,
                               const std::optional<at::Tensor>& bias, std::string_view format,
                               std::string_view layout, int64_t num_rows) {
  const QuantLinearSizes s = check_quant_linear(x, qweight, bias, format, layout, num_rows);
  const at::Tensor xs = x.stride(1) == 1 ? x : x.contiguous(), w = qweight.contiguous();
  const at::Tensor b = bias ? bias->contiguous() : at::Tensor();
  at::Tensor out = at::empty({s.M, s.N}, x.options());
  at::Tensor workspace = at::empty({activation_bytes(s.M, s.K)}, qweight.options());
  void* activations = workspace.mutable_data_ptr();
  quantize_activations_cpu({xs.const_data_ptr<float>(), activations, s.M, s.K, xs.stride(0)});
  quant_linear_cpu({activations, w.const_data_ptr<uint8_t>(), bias ? b.const_data_ptr<float>() : nullptr,
                    out.mutable_data_ptr<float>(), s.format, s.packed, s.M, s.N, s.K, s.N});
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(pyspec, CPU, m) { m.impl("quant_linear", quant_linear_on_cpu); }

}  // namespace pyspec
