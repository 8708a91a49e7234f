// SPDX-License-Identifier: Apache-2.0
// torch binding of tile_kv.
#include "pyspec/tile_kv.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <tuple>

#include "bind/kv_checks.h"

namespace pyspec {
namespace {

std::tuple<at::Tensor, at::Tensor> tile_kv(const at::Tensor& k_pages, const at::Tensor& v_pages,
                                           bool inverse) {
  Dim P{"P"}, S{"S"}, G{"G"}, D{"D"};
  Checker check("tile_kv");
  check.tensor("k_pages", k_pages, {P, S, G, D}, {at::kFloat, at::kBFloat16, at::kHalf, at::kChar});
  check.tensor("v_pages", v_pages, {P, S, G, D}, {k_pages.scalar_type()});
  check_layout(check, "tiled", k_pages);
  const at::Tensor k = k_pages.contiguous(), v = v_pages.contiguous();
  at::Tensor k_out = at::empty(k.sizes(), k.options()), v_out = at::empty(k.sizes(), k.options());
  tile_kv_cpu({k.const_data_ptr(), v.const_data_ptr(), k_out.mutable_data_ptr(), v_out.mutable_data_ptr(),
               P.size, S.size, G.size, D.size, to_dtype(k.scalar_type()), inverse});
  return {k_out, v_out};
}

}  // namespace

TORCH_LIBRARY_IMPL(pyspec, CPU, m) { m.impl("tile_kv", tile_kv); }

}  // namespace pyspec
