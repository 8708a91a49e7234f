// SPDX-License-Identifier: Apache-2.0
// rope on torch tensors of any device with a kernel: checks, then one launch.
#pragma once

#include <ATen/ops/empty.h>

#include "bind/kv_checks.h"
#include "pyspec/rope.h"

namespace pyspec {

template <Launch<RopeParams> kLaunch, Place kPlace>
at::Tensor rope(const at::Tensor& x_, const at::Tensor& positions_, const at::Tensor& rope_table_,
                bool interleaved) {
  Dim T{"T"}, H{"H"}, D{"D"}, X{"X"}, Y{"Y"};
  Checker check("rope");
  check.tensor("x", x_, {T, H, D}, kFloatTypes);
  check.tensor("positions", positions_, {T}, {at::kInt});
  check.tensor("rope_table", rope_table_, {X, Y}, {at::kFloat});
  const at::Tensor x = usable_rows(x_), positions = positions_.contiguous(), table = rope_table_.contiguous();
  check_rope_table(check, positions, table, D.size, kPlace);
  at::Tensor out = at::empty(x.sizes(), x.options());
  kLaunch(x.device(), {x.const_data_ptr(), positions.const_data_ptr<int32_t>(), table.const_data_ptr<float>(),
                       out.mutable_data_ptr(), T.size, H.size, D.size, Y.size, x.stride(0), H.size * D.size,
                       to_dtype(x.scalar_type()), interleaved});
  return out;
}

}  // namespace pyspec
