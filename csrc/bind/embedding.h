// SPDX-License-Identifier: Apache-2.0
// embedding on torch tensors of any device with a kernel: checks, then one launch.
#pragma once

#include <ATen/ops/empty.h>

#include "bind/quant_check.h"
#include "pyspec/embedding.h"

namespace pyspec {

template <Launch<EmbeddingParams> kLaunch, Place kPlace>
at::Tensor embedding(const at::Tensor& ids, const at::Tensor& weight, double scale) {
  Dim T{"T"}, V{"V"}, K{"K"};
  Checker check("embedding");
  check.tensor("ids", ids, {T}, {at::kInt});
  check.tensor("weight", weight, {V, K}, {at::kFloat, at::kBFloat16, at::kHalf});
  const at::Tensor id = ids.contiguous(), rows = weight.stride(1) == 1 ? weight : weight.contiguous();
  check_ids(check, id, V.size, kPlace);
  at::Tensor out = at::empty({T.size, K.size}, weight.options().dtype(at::kFloat));
  kLaunch(weight.device(),
          {id.const_data_ptr<int32_t>(), rows.const_data_ptr(), out.mutable_data_ptr<float>(),
           to_dtype(weight.scalar_type()), T.size, K.size, rows.stride(0), K.size, float(scale)});
  return out;
}

}  // namespace pyspec
