// SPDX-License-Identifier: Apache-2.0
// build_tree on torch tensors of any device with a kernel: checks, then one launch.
#pragma once

#include <ATen/ops/empty.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "bind/law.h"
#include "pyspec/build_tree.h"

namespace pyspec {

// Values are the caller's business on a GPU: to read them here would wait for it.
inline void check_frontier(const Checker& check, const at::Tensor& cu_t, const at::Tensor& position,
                           const at::Tensor& temperature, const at::Tensor& ids, int64_t T) {
  const int32_t* offsets = cu_t.const_data_ptr<int32_t>();
  const int64_t B = cu_t.numel() - 1;
  for (int64_t b = 0; b <= B; ++b) {
    const int64_t low = b == B ? T : b ? offsets[b - 1] : 0, high = b ? T : 0;
    const std::string rule =
        low == high ? std::to_string(low) : "in [" + std::to_string(low) + ", " + std::to_string(high) + "]";
    const std::string name = "cu_t[" + std::to_string(b) + "]";
    check.value(low <= offsets[b] && offsets[b] <= high, name.c_str(), rule, offsets[b]);
  }
  check_values<int32_t>(check, "position", ">= 0", position, [](int32_t x) { return x >= 0; });
  check_values<float>(check, "temperature", "finite and >= 0", temperature,
                      [](float x) { return std::isfinite(x) && x >= 0; });
  int32_t before = -1;
  if (ids.defined())
    check_values<int32_t>(check, "ids", "above the one before it, from 0", ids,
                          [&](int32_t x) { return x > std::exchange(before, x); });
}

template <Launch<BuildTreeParams> kLaunch, Place kPlace>
std::tuple<at::Tensor, at::Tensor, at::Tensor> build_tree(
    const at::Tensor& logits, const at::Tensor& node_score_, const at::Tensor& cu_t_,
    const at::Tensor& position_, const at::Tensor& temperature_, const at::Tensor& seed_,
    const at::Tensor& stream_, const std::optional<at::Tensor>& ids_, int64_t width, c10::string_view rule) {
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
  if (ids_) check.tensor("ids", *ids_, {V}, {at::kInt});
  check_vocab(check, V.size);
  check.value(width >= 1 && width <= kMaxWidth, "width", "in [1, " + std::to_string(kMaxWidth) + "]", width);
  check.value(rule == "deterministic" || rule == "shared_noise", "rule", "deterministic|shared_noise", rule);
  const at::Tensor rows = logits.stride(1) == 1 ? logits : logits.contiguous();
  const at::Tensor node_score = node_score_.contiguous(), cu_t = cu_t_.contiguous(),
                   position = position_.contiguous();
  const at::Tensor temperature = temperature_.contiguous(), seed = seed_.contiguous(),
                   stream = stream_.contiguous(), ids = ids_ ? ids_->contiguous() : at::Tensor();
  if (kPlace == Place::kCpu) check_frontier(check, cu_t, position, temperature, ids, T.size);
  at::Tensor token = at::empty({B.size, width}, position.options());
  at::Tensor parent = at::empty({B.size, width}, position.options());
  at::Tensor score = at::empty({B.size, width}, logits.options());
  at::Tensor node_best = at::empty({T.size, std::min(width, V.size)}, seed.options());
  at::Tensor noise;
  if (kPlace == Place::kCpu && rule == "shared_noise")
    noise = at::empty({B.size, (V.size + 63) / 64 * 64}, logits.options().dtype(at::kDouble));
  kLaunch(
      logits.device(),
      {rows.const_data_ptr<float>(), node_score.const_data_ptr<float>(), cu_t.const_data_ptr<int32_t>(),
       position.const_data_ptr<int32_t>(), temperature.const_data_ptr<float>(),
       seed.const_data_ptr<int64_t>(), stream.const_data_ptr<int32_t>(),
       ids.defined() ? ids.const_data_ptr<int32_t>() : nullptr, token.mutable_data_ptr<int32_t>(),
       parent.mutable_data_ptr<int32_t>(), score.mutable_data_ptr<float>(),
       node_best.mutable_data_ptr<int64_t>(), noise.defined() ? noise.mutable_data_ptr<double>() : nullptr,
       T.size, B.size, V.size, width, rows.stride(0), rule == "shared_noise"});
  return {token, parent, score};
}

}  // namespace pyspec
