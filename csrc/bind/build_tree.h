// SPDX-License-Identifier: Apache-2.0
// build_tree on torch tensors of any device with a kernel: checks, then one launch.
#pragma once

#include <ATen/ops/empty.h>

#include <algorithm>
#include <tuple>

#include "bind/law.h"
#include "pyspec/build_tree.h"

namespace pyspec {

template <Launch<BuildTreeParams> kLaunch>
std::tuple<at::Tensor, at::Tensor, at::Tensor> build_tree(
    const at::Tensor& logits, const at::Tensor& node_score_, const at::Tensor& cu_t_,
    const at::Tensor& position_, const at::Tensor& temperature_, const at::Tensor& seed_,
    const at::Tensor& stream_, int64_t width, c10::string_view rule) {
  constexpr int64_t kMaxWidth = 1024;
  Dim T{"T"}, V{"V"}, B{"B"};
  Checker check("build_tree");
  check.tensor("logits", logits, {T, V}, {at::kFloat});
  check.tensor("node_score", node_score_, {T}, {at::kFloat});
  check.tensor("cu_t", cu_t_, {offsets_size(cu_t_, {&position_, &temperature_, &seed_, &stream_})},
               {at::kInt});
  check.tensor("position", position_, {B}, {at::kInt});
  check.tensor("temperature", temperature_, {B}, {at::kFloat});
  check.tensor("seed", seed_, {B}, {at::kLong});
  check.tensor("stream", stream_, {B}, {at::kInt});
  check_vocab(check, V.size);
  check.value(width >= 1 && width <= kMaxWidth, "width", "in [1, " + std::to_string(kMaxWidth) + "]", width);
  check.value(rule == "deterministic" || rule == "shared_noise", "rule", "deterministic|shared_noise", rule);
  const at::Tensor rows = logits.stride(1) == 1 ? logits : logits.contiguous();
  const at::Tensor node_score = node_score_.contiguous(), cu_t = cu_t_.contiguous(),
                   position = position_.contiguous();
  const at::Tensor temperature = temperature_.contiguous(), seed = seed_.contiguous(),
                   stream = stream_.contiguous();
  at::Tensor token = at::empty({B.size, width}, position.options());
  at::Tensor parent = at::empty({B.size, width}, position.options());
  at::Tensor score = at::empty({B.size, width}, logits.options());
  at::Tensor node_best = at::empty({T.size, std::min(width, V.size)}, seed.options());
  kLaunch(logits.device(),
          {rows.const_data_ptr<float>(), node_score.const_data_ptr<float>(), cu_t.const_data_ptr<int32_t>(),
           position.const_data_ptr<int32_t>(), temperature.const_data_ptr<float>(),
           seed.const_data_ptr<int64_t>(), stream.const_data_ptr<int32_t>(),
           token.mutable_data_ptr<int32_t>(), parent.mutable_data_ptr<int32_t>(),
           score.mutable_data_ptr<float>(), node_best.mutable_data_ptr<int64_t>(), T.size, B.size, V.size,
           width, rows.stride(0), rule == "shared_noise"});
  return {token, parent, score};
}

}  // namespace pyspec
