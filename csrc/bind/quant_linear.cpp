// SPDX-License-Identifier: Apache-2.0
// torch binding of quant_linear.
#include "pyspec/quant_linear.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "bind/quant_check.h"
#include "pyspec/quantize_activations.h"

namespace pyspec {
namespace {

at::Tensor quant_linear(const at::Tensor& x, const at::Tensor& qweight, const std::optional<at::Tensor>& bias,
                        std::string_view format, std::string_view layout, int64_t num_rows) {
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

  const at::Tensor xs = x.stride(1) == 1 ? x : x.contiguous(), w = qweight.contiguous();
  const at::Tensor b = bias ? bias->contiguous() : at::Tensor();
  at::Tensor out = at::empty({m, rows}, x.options());
  at::Tensor workspace = at::empty({activation_bytes(m, k)}, qweight.options());
  void* activations = workspace.mutable_data_ptr();
  quantize_activations_cpu({xs.const_data_ptr<float>(), activations, m, k, xs.stride(0)});
  quant_linear_cpu({activations, w.const_data_ptr<uint8_t>(), bias ? b.const_data_ptr<float>() : nullptr,
                    out.mutable_data_ptr<float>(), f, packed, m, rows, k, rows});
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(pyspec, CPU, m) { m.impl("quant_linear", quant_linear); }

}  // namespace pyspec
