// SPDX-License-Identifier: Apache-2.0
// torch binding of pack_quant_weight.
#include "pyspec/pack_quant_weight.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "bind/quant_check.h"

namespace pyspec {
namespace {

at::Tensor pack_quant_weight(const at::Tensor& qweight, std::string_view format) {
  Dim N{"N"}, Y{"Y"};
  Checker check("pack_quant_weight");
  check.tensor("qweight", qweight, {N, Y}, {at::kByte});
  const QuantFormat f = check_format(check, format);
  check_gguf_rows(check, qweight, f);
  const int64_t k = Y.size / info(f).block_bytes * info(f).block_k;
  const at::Tensor rows = qweight.contiguous();
  at::Tensor packed =
      at::empty({(N.size + kChannels - 1) / kChannels, packed_block_bytes(f, k)}, qweight.options());
  pack_quant_weight_cpu({rows.const_data_ptr<uint8_t>(), packed.mutable_data_ptr<uint8_t>(), f, N.size, k});
  return packed;
}

}  // namespace

TORCH_LIBRARY_IMPL(pyspec, CPU, m) { m.impl("pack_quant_weight", pack_quant_weight); }

}  // namespace pyspec
