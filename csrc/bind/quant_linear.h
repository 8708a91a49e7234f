// SPDX-License-Identifier: Apache-2.0
// Checks of quant_linear, and its binding on GPUs: two launches, of quantize_activations and of the product.
#pragma once

#include <ATen/ops/empty.h>

#include "bind/quant_check.h"
#include "bind/quantize_activations.h"
#include "pyspec/quant_linear.h"

namespace pyspec {

// What the arguments of quant_linear say.
struct QuantLinearSizes {
  QuantFormat format;
  bool packed;
  int64_t M, N, K;
};

inline QuantLinearSizes check_quant_linear(const at::Tensor& x, const at::Tensor& qweight,
                                           const std::optional<at::Tensor>& bias, std::string_view format,
                                           std::string_view layout, int64_t num_rows) {
  Dim M{"M"}, K{"K"}, R{"R"}, Y{"Y"}, N{"N"};
  Checker check("quant_linear");
  check.tensor("x", x, {M, K}, {at::kFloat});
  check.tensor("qweight", qweight, {R, Y}, {at::kByte});
  if (bias) check.tensor("bias", *bias, {N}, {at::kFloat});
  const QuantFormat f = check_format(check, format);
  bool packed;
  const int64_t rows = check_layout(check, layout, num_rows, R.size, &packed);
  const int64_t block = info(f).block_k, m = M.size, k = K.size;
  check.value(
      k > 0 && k % block == 0, "x",
      "[M, K] with K a multiple of " + std::to_string(block) + " (values of a " + info(f).name + " block)",
      list_text(x.sizes()));
  const int64_t size = packed ? packed_block_bytes(f, k) : gguf_row_bytes(f, k);
  check.value(Y.size == size, "qweight",
              "[R, Y] with Y=" + std::to_string(size) + " (" + info(f).name + " " + std::string(layout) +
                  " of K=" + std::to_string(k) + ")",
              list_text(qweight.sizes()));
  if (bias)
    check.value(N.size == rows, "bias", "[N] with N=" + std::to_string(rows), list_text(bias->sizes()));
  return {f, packed, m, rows, k};
}

template <Launch<QuantizedRowsParams> kQuantize, Launch<QuantRowsParams> kLaunch>
at::Tensor quant_linear(const at::Tensor& x, const at::Tensor& qweight, const std::optional<at::Tensor>& bias,
                        std::string_view format, std::string_view layout, int64_t num_rows) {
  const QuantLinearSizes s = check_quant_linear(x, qweight, bias, format, layout, num_rows);
  Checker("quant_linear").value(!s.packed, "layout", "rows on GPUs", layout);
  const auto [q, scale, sums] = quantize_activations<kQuantize>(x);
  at::Tensor w = qweight.contiguous();
  if (reinterpret_cast<uintptr_t>(w.const_data_ptr()) % 2 != 0) w = w.clone();  // kernels read rows by twos
  const at::Tensor b = bias ? bias->contiguous() : at::Tensor();
  at::Tensor out = at::empty({s.M, s.N}, x.options());
  kLaunch(x.device(), {q.template const_data_ptr<int8_t>(), scale.template const_data_ptr<float>(),
                       sums.template const_data_ptr<int32_t>(), w.const_data_ptr<uint8_t>(),
                       bias ? b.const_data_ptr<float>() : nullptr, out.mutable_data_ptr<float>(), s.format,
                       s.M, s.N, s.K});
  return out;
}

}  // namespace pyspec
