// SPDX-License-Identifier: Apache-2.0
// draw_children on torch tensors of any device with a kernel: checks, then one launch.
#pragma once

#include <ATen/ops/empty.h>

#include <tuple>

#include "bind/law.h"
#include "pyspec/draw_children.h"

namespace pyspec {

template <Launch<DrawChildrenParams> kLaunch, Place kPlace>
std::tuple<at::Tensor, at::Tensor> draw_children(const at::Tensor& logits, const at::Tensor& count_,
                                                 const at::Tensor& temperature_, const at::Tensor& seed_,
                                                 const at::Tensor& stream_, const at::Tensor& step_,
                                                 const at::Tensor& node_, int64_t width,
                                                 c10::string_view rule) {
  constexpr int64_t kMaxWidth = 1024;
  constexpr int32_t kMaxNode = 1 << 24;
  Dim T{"T"}, V{"V"};
  Checker check("draw_children");
  check.tensor("logits", logits, {T, V}, {at::kFloat});
  check.tensor("count", count_, {T}, {at::kInt});
  check.tensor("temperature", temperature_, {T}, {at::kFloat});
  check.tensor("seed", seed_, {T}, {at::kLong});
  check.tensor("stream", stream_, {T}, {at::kInt});
  check.tensor("step", step_, {T}, {at::kInt});
  check.tensor("node", node_, {T}, {at::kInt});
  check_vocab(check, V.size);
  check.value(width >= 1 && width <= kMaxWidth, "width", "in [1, " + std::to_string(kMaxWidth) + "]", width);
  const DrawRule kind = rule == "iid"      ? DrawRule::kIid
                        : rule == "hybrid" ? DrawRule::kHybrid
                                           : DrawRule::kWithoutReplacement;
  check.value(kind != DrawRule::kWithoutReplacement || rule == "without_replacement", "rule",
              "iid|without_replacement|hybrid", rule);
  const at::Tensor rows = logit_rows(logits), count = count_.contiguous(),
                   temperature = temperature_.contiguous(), seed = seed_.contiguous(),
                   stream = stream_.contiguous(), step = step_.contiguous(), node = node_.contiguous();
  if (kPlace == Place::kCpu) {
    check_values<int32_t>(check, "count", "in [0, " + std::to_string(width) + "]", count,
                          [=](int32_t x) { return x >= 0 && x <= width; });
    check_values<float>(check, "temperature", "finite and >= 0", temperature,
                        [](float x) { return std::isfinite(x) && x >= 0; });
    check_values<int32_t>(check, "step", ">= 0", step, [](int32_t x) { return x >= 0; });
    check_values<int32_t>(check, "node", "in [0, " + std::to_string(kMaxNode) + ")", node,
                          [=](int32_t x) { return x >= 0 && x < kMaxNode; });
  }
  at::Tensor token = at::empty({T.size, width}, count.options());
  at::Tensor log_q = at::empty({T.size, width}, logits.options());
  kLaunch(logits.device(),
          {rows.const_data_ptr<float>(), count.const_data_ptr<int32_t>(), temperature.const_data_ptr<float>(),
           seed.const_data_ptr<int64_t>(), stream.const_data_ptr<int32_t>(), step.const_data_ptr<int32_t>(),
           node.const_data_ptr<int32_t>(), token.mutable_data_ptr<int32_t>(), log_q.mutable_data_ptr<float>(),
           T.size, V.size, width, rows.stride(0), kind});
  return {token, log_q};
}

}  // namespace pyspec
