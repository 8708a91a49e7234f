// SPDX-License-Identifier: Apache-2.0
// Rows of x as the kernels of the linear family take them.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/zeros.h>

#include "bind/launch.h"

namespace pyspec {

inline at::Tensor f32_rows(const at::Tensor& x) {  // of any stride; widening is exact
  const at::Tensor wide = x.to(at::kFloat);
  return wide.stride(1) == 1 ? wide : wide.contiguous();
}

inline bool aligned_rows(const at::Tensor& x, int64_t bytes) {
  return x.stride(1) == 1 && x.stride(0) * x.element_size() % bytes == 0 &&
         reinterpret_cast<uintptr_t>(x.const_data_ptr()) % bytes == 0;
}

// Aligned to 16 bytes and zero up to a multiple of 32 k, so that GPU kernels read x without a bound: a copy
// where x is not like that already.
inline at::Tensor padded_rows(const at::Tensor& x) {
  constexpr int64_t kChunk = 32;
  const int64_t k = x.size(1), padded = (k + kChunk - 1) / kChunk * kChunk;
  if (k == padded && aligned_rows(x, 16)) return x;
  at::Tensor rows = at::zeros({x.size(0), padded}, x.options());
  rows.narrow(1, 0, k).copy_(x);
  return rows;
}

// CPU kernels take f32; GPU kernels bf16 as well.
inline at::Tensor rows_for(Place place, const at::Tensor& x) {
  return place == Place::kCpu ? f32_rows(x) : padded_rows(x);
}

}  // namespace pyspec
