// SPDX-License-Identifier: Apache-2.0
// quant_embedding on torch tensors of any device with a kernel: checks, then one launch.
#pragma once

#include <ATen/ops/empty.h>

#include "bind/quant_check.h"
#include "pyspec/quant_embedding.h"

namespace pyspec {

template <Launch<QuantEmbeddingParams> kLaunch, Place kPlace>
at::Tensor quant_embedding(const at::Tensor& ids, const at::Tensor& qweight, std::string_view format,
                           std::string_view layout, int64_t num_rows, double scale) {
  Dim T{"T"}, R{"R"}, Y{"Y"};
  Checker check("quant_embedding");
  check.tensor("ids", ids, {T}, {at::kInt});
  check.tensor("qweight", qweight, {R, Y}, {at::kByte});
  const QuantFormat f = check_format(check, format);
  bool packed;
  const int64_t rows = check_layout(check, layout, num_rows, R.size, &packed);
  const int64_t block = info(f).block_k;
  int64_t k = Y.size / info(f).block_bytes * block;
  if (packed) {
    k = (Y.size - 64) / (scale_bytes(f) + value_bytes(f)) * kGroup;
    check.value(k > 0 && k % block == 0 && packed_block_bytes(f, k) == Y.size, "qweight",
                std::string("[R, Y] with Y the bytes of a packed ") + info(f).name + " block",
                list_text(qweight.sizes()));
  } else {
    check_gguf_rows(check, qweight, f);
  }
  check.value(!packed || kPlace == Place::kCpu, "layout", "rows on GPUs", layout);
  const at::Tensor id = ids.contiguous();
  at::Tensor w = qweight.contiguous();
  if (reinterpret_cast<uintptr_t>(w.const_data_ptr()) % 2 != 0) w = w.clone();  // kernels read rows by twos
  check_ids(check, id, rows, kPlace);
  at::Tensor out = at::empty({T.size, k}, qweight.options().dtype(at::kFloat));
  kLaunch(qweight.device(), {id.const_data_ptr<int32_t>(), w.const_data_ptr<uint8_t>(),
                             out.mutable_data_ptr<float>(), f, packed, T.size, k, k, float(scale)});
  return out;
}

}  // namespace pyspec
