// SPDX-License-Identifier: Apache-2.0
// torch binding of softcap.
#include "pyspec/softcap.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "bind/check.h"

namespace pyspec {
namespace {

at::Tensor softcap(const at::Tensor& x, double cap) {
  Dim M{"M"}, K{"K"};
  Checker check("softcap");
  check.tensor("x", x, {M, K}, {at::kFloat});
  check.value(cap > 0 && std::isfinite(cap), "cap", "positive and finite", cap);
  const at::Tensor rows = x.contiguous();
  at::Tensor out = at::empty({M.size, K.size}, x.options());
  softcap_cpu({rows.const_data_ptr<float>(), out.mutable_data_ptr<float>(), M.size, K.size, float(cap)});
  return out;
}

}  // namespace

TORCH_LIBRARY_IMPL(pyspec, CPU, m) { m.impl("softcap", softcap); }

}  // namespace pyspec
