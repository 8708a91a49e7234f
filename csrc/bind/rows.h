// SPDX-License-Identifier: Apache-2.0
// Rows of f32 as kernels take them.
#pragma once

#include <ATen/core/Tensor.h>

namespace pyspec {

inline at::Tensor f32_rows(const at::Tensor& x) {  // of any stride; widening is exact
  const at::Tensor wide = x.to(at::kFloat);
  return wide.stride(1) == 1 ? wide : wide.contiguous();
}

}  // namespace pyspec
