// SPDX-License-Identifier: Apache-2.0
// softcap on torch tensors of any device with a kernel: checks, then one launch.
#pragma once

#include <ATen/ops/empty.h>

#include <cmath>

#include "bind/check.h"
#include "bind/launch.h"
#include "pyspec/softcap.h"

namespace pyspec {

template <Launch<SoftcapParams> kLaunch>
at::Tensor softcap(const at::Tensor& x, double cap) {
  Dim M{"M"}, K{"K"};
  Checker check("softcap");
  check.tensor("x", x, {M, K}, {at::kFloat});
  check.value(cap > 0 && std::isfinite(cap), "cap", "positive and finite", cap);
  const at::Tensor rows = x.contiguous();
  at::Tensor out = at::empty({M.size, K.size}, x.options());
  kLaunch(x.device(),
          {rows.const_data_ptr<float>(), out.mutable_data_ptr<float>(), M.size, K.size, float(cap)});
  return out;
}

}  // namespace pyspec
