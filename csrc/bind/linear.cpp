// SPDX-License-Identifier: Apache-2.0
// torch bindings of linear and linear_packed on the CPU.
#include "bind/linear.h"

#include <torch/library.h>

namespace pyspec {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

at::Tensor linear_packed(const at::Tensor& x, const at::Tensor& packed, const OptionalTensor& bias,
                         int64_t num_rows) {
  Dim M{"M"}, N{"N"}, K{"K"}, C{"C"};
  Checker check("linear_packed");
  check.tensor("x", x, {M, K}, {at::kFloat, at::kBFloat16});
  check.tensor("packed", packed, {C, DimRef("K+1/2*32", packed_block_elements(K.size))},
               {at::kFloat, at::kBFloat16});
  if (bias) check.tensor("bias", *bias, {N}, {at::kFloat});
  std::ostringstream rule;
  rule << "in (" << 16 * (C.size - 1) << ", " << 16 * C.size << "] (from packed.size(0)=" << C.size
       << " blocks of 16)";
  check.value(16 * (C.size - 1) < num_rows && num_rows <= 16 * C.size, "num_rows", rule.str(), num_rows);
  if (bias)
    check.value(N.size == num_rows, "bias", "[N] with N=" + std::to_string(num_rows),
                list_text(bias->sizes()));
  const at::Tensor xs = f32_rows(x), w = packed.contiguous();
  const at::Tensor b = bias ? bias->contiguous() : at::Tensor();
  at::Tensor out = at::empty({M.size, num_rows}, xs.options());
  linear_cpu({xs.const_data_ptr<float>(), w.const_data_ptr(), bias ? b.const_data_ptr<float>() : nullptr,
              out.mutable_data_ptr<float>(), to_dtype(packed.scalar_type()), true, M.size, num_rows, K.size,
              xs.stride(0), 0, num_rows});
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(pyspec, CPU, m) {
  m.impl("linear", linear<on_cpu<LinearParams, linear_cpu>, Place::kCpu>);
  m.impl("linear_packed", linear_packed);
}

}  // namespace pyspec
