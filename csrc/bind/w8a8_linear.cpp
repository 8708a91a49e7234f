// SPDX-License-Identifier: Apache-2.0
// torch bindings of w8a8_linear and w8a8_linear_packed on the CPU.
#include "bind/w8a8_linear.h"

#include <torch/library.h>

namespace pyspec {
namespace {

at::Tensor w8a8_linear_packed(const at::Tensor& x, const at::Tensor& packed, const at::Tensor& x_scale,
                              const at::Tensor& w_scale, at::ScalarType out_dtype) {
  Dim M{"M"}, N{"N"}, K{"K"}, C{"C"};
  Checker check("w8a8_linear_packed");
  check.tensor("x", x, {M, K}, {at::kChar});
  check.tensor("packed", packed, {C, DimRef("K+63/64*1024", packed_int8_block_bytes(K.size))}, {at::kByte});
  check.tensor("x_scale", x_scale, {M}, {at::kFloat});
  check.tensor("w_scale", w_scale, {N}, {at::kFloat});
  check_w8a8(check, x, out_dtype);
  check.value(
      (N.size + 15) / 16 == C.size, "packed",
      "[C, Z] with C=" + std::to_string((N.size + 15) / 16) + " (ceil(N / 16), N from w_scale.size(0))",
      list_text(packed.sizes()));
  const at::Tensor xs = x.stride(1) == 1 ? x : x.contiguous(), w = packed.contiguous();
  const at::Tensor row = x_scale.contiguous(), channel = w_scale.contiguous();
  at::Tensor out = at::empty({M.size, N.size}, x.options().dtype(out_dtype));
  w8a8_linear_cpu({xs.const_data_ptr<int8_t>(), static_cast<const int8_t*>(w.const_data_ptr()),
                   row.const_data_ptr<float>(), channel.const_data_ptr<float>(), out.mutable_data_ptr(),
                   to_dtype(out_dtype), M.size, N.size, K.size, xs.stride(0), 0, true});
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(pyspec, CPU, m) {
  m.impl("w8a8_linear", w8a8_linear<on_cpu<W8A8LinearParams, w8a8_linear_cpu>, Place::kCpu>);
  m.impl("w8a8_linear_packed", w8a8_linear_packed);
}

}  // namespace pyspec
