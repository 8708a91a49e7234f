// SPDX-License-Identifier: Apache-2.0
// torch bindings of linear, linear_packed, pack_weight, w4a16_linear and w8a8_linear.
#include "pyspec/linear.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "bind/check.h"
#include "pyspec/pack_weight.h"
#include "pyspec/w4a16_linear.h"
#include "pyspec/w8a8_linear.h"

namespace pyspec {
namespace {

using OptionalTensor = std::optional<at::Tensor>;

at::Tensor f32_rows(const at::Tensor& x) {  // kernels take f32 rows of any stride; widening is exact
  const at::Tensor wide = x.to(at::kFloat);
  return wide.stride(1) == 1 ? wide : wide.contiguous();
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const OptionalTensor& bias) {
  Dim M{"M"}, N{"N"}, K{"K"};
  Checker check("linear");
  check.tensor("x", x, {M, K}, {at::kFloat, at::kBFloat16});
  check.tensor("weight", weight, {N, K}, {at::kFloat, at::kBFloat16});
  if (bias) check.tensor("bias", *bias, {N}, {at::kFloat});
  const at::Tensor xs = f32_rows(x), w = weight.stride(1) == 1 ? weight : weight.contiguous();
  const at::Tensor b = bias ? bias->contiguous() : at::Tensor();
  at::Tensor out = at::empty({M.size, N.size}, xs.options());
  linear_cpu({xs.const_data_ptr<float>(), w.const_data_ptr(), bias ? b.const_data_ptr<float>() : nullptr,
              out.mutable_data_ptr<float>(), to_dtype(weight.scalar_type()), false, M.size, N.size, K.size,
              xs.stride(0), w.stride(0), N.size});
  return out;
}

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

at::Tensor pack_weight(const at::Tensor& weight) {
  Dim N{"N"}, K{"K"};
  Checker check("pack_weight");
  check.tensor("weight", weight, {N, K}, {at::kFloat, at::kBFloat16});
  const at::Tensor w = weight.stride(1) == 1 ? weight : weight.contiguous();
  at::Tensor packed = at::empty({(N.size + 15) / 16, packed_block_elements(K.size)}, weight.options());
  pack_weight_cpu({w.const_data_ptr(), packed.mutable_data_ptr(), to_dtype(weight.scalar_type()), N.size,
                   K.size, w.stride(0)});
  return packed;
}

at::Tensor w4a16_linear(const at::Tensor& x, const at::Tensor& qweight, const at::Tensor& scales,
                        const OptionalTensor& zeros, const OptionalTensor& g_idx, int64_t group_size) {
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
  for (int64_t k = 0; group_of && k < K.size; ++k)
    check.value(group_of[k] >= 0 && group_of[k] < groups, "g_idx", "in [0, " + std::to_string(groups) + ")",
                group_of[k]);
  const at::Tensor xs = f32_rows(x), q = qweight.contiguous(), s = scales.contiguous();
  const at::Tensor z = zeros ? zeros->contiguous() : at::Tensor();
  at::Tensor out = at::empty({M.size, N.size}, xs.options());
  w4a16_linear_cpu({xs.const_data_ptr<float>(), q.const_data_ptr<uint8_t>(), s.const_data_ptr(),
                    zeros ? z.const_data_ptr() : nullptr, group_of, out.mutable_data_ptr<float>(),
                    to_dtype(scales.scalar_type()), M.size, N.size, K.size, groups,
                    whole ? K.size : group_size, xs.stride(0)});
  return out;
}

at::Tensor w8a8_linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& x_scale,
                       const at::Tensor& w_scale, at::ScalarType out_dtype) {
  Dim M{"M"}, N{"N"}, K{"K"};
  Checker check("w8a8_linear");
  check.tensor("x", x, {M, K}, {at::kChar});
  check.tensor("weight", weight, {N, K}, {at::kChar});
  check.tensor("x_scale", x_scale, {M}, {at::kFloat});
  check.tensor("w_scale", w_scale, {N}, {at::kFloat});
  TORCH_CHECK_TYPE(out_dtype == at::kFloat || out_dtype == at::kBFloat16 || out_dtype == at::kHalf,
                   "w8a8_linear: out_dtype must be f32|bf16|f16, got ", dtype_name(out_dtype));
  check.value(K.size < 1 << 17, "x", "[M, K] with K < 131072", list_text(x.sizes()));
  const at::Tensor xs = x.stride(1) == 1 ? x : x.contiguous();
  const at::Tensor w = weight.stride(1) == 1 ? weight : weight.contiguous();
  const at::Tensor row = x_scale.contiguous(), channel = w_scale.contiguous();
  at::Tensor out = at::empty({M.size, N.size}, x.options().dtype(out_dtype));
  w8a8_linear_cpu({xs.const_data_ptr<int8_t>(), w.const_data_ptr<int8_t>(), row.const_data_ptr<float>(),
                   channel.const_data_ptr<float>(), out.mutable_data_ptr(), to_dtype(out_dtype), M.size,
                   N.size, K.size, xs.stride(0), w.stride(0)});
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(pyspec, CPU, m) {
  m.impl("linear", linear);
  m.impl("linear_packed", linear_packed);
  m.impl("pack_weight", pack_weight);
  m.impl("w4a16_linear", w4a16_linear);
  m.impl("w8a8_linear", w8a8_linear);
}

}  // namespace pyspec
