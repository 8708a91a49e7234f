// SPDX-License-Identifier: Apache-2.0
// edit_logits on torch tensors of any device with a kernel: checks, then one launch.
#pragma once

#include <ATen/ops/empty.h>

#include <optional>
#include <string>
#include <vector>

#include "bind/verify_tree.h"
#include "pyspec/edit_logits.h"

namespace pyspec {

// Ids of requests: each in the vocabulary, and once in its request.
inline void check_distinct(const Checker& check, const char* name, const at::Tensor& ids,
                           const at::Tensor& offsets, int64_t vocab) {
  check_values<int32_t>(check, name, "in [0, " + std::to_string(vocab) + ")", ids,
                        [=](int32_t x) { return x >= 0 && x < vocab; });
  const int32_t *id = ids.const_data_ptr<int32_t>(), *cu = offsets.const_data_ptr<int32_t>();
  thread_local std::vector<bool> seen;  // false between calls
  if (int64_t(seen.size()) < vocab) seen.resize(size_t(vocab));
  int64_t again = -1;
  for (int64_t b = 0; b + 1 < offsets.numel(); ++b) {
    for (int64_t i = cu[b]; i < cu[b + 1]; ++i) {
      if (seen[size_t(id[i])] && again < 0) again = std::find(id + cu[b], id + i, id[i]) - id;
      seen[size_t(id[i])] = true;
    }
    for (int64_t i = cu[b]; i < cu[b + 1]; ++i) seen[size_t(id[i])] = false;
  }
  if (again >= 0) check.value(false, element(name, again).c_str(), "once in its request", id[again]);
}

template <Launch<EditLogitsParams> kLaunch, Place kPlace>
at::Tensor edit_logits(const at::Tensor& logits, const at::Tensor& tokens_, const at::Tensor& parents_,
                       const at::Tensor& cu_t_, const at::Tensor& repetition_, const at::Tensor& presence_,
                       const at::Tensor& frequency_, const at::Tensor& history_,
                       const at::Tensor& history_count_, const at::Tensor& cu_history_,
                       const at::Tensor& bias_token_, const at::Tensor& bias_, const at::Tensor& cu_bias_,
                       const std::optional<at::Tensor>& mask_, const at::Tensor& mask_row_) {
  Dim T{"T"}, V{"V"}, B{"B"}, N{"N"}, J{"J"}, R{"R", mask_ ? -1 : 0};
  Checker check("edit_logits");
  check.tensor("logits", logits, {T, V}, {at::kFloat});
  check.tensor("tokens", tokens_, {T}, {at::kInt});
  check.tensor("parents", parents_, {T}, {at::kInt});
  check.tensor("cu_t", cu_t_, {offsets_size(cu_t_, {&repetition_, &presence_, &frequency_})}, {at::kInt});
  check.tensor("repetition", repetition_, {B}, {at::kFloat});
  check.tensor("presence", presence_, {B}, {at::kFloat});
  check.tensor("frequency", frequency_, {B}, {at::kFloat});
  const DimRef entries("B+1", B.size + 1);
  check.tensor("history", history_, {N}, {at::kInt});
  check.tensor("history_count", history_count_, {N}, {at::kInt});
  check.tensor("cu_history", cu_history_, {entries}, {at::kInt});
  check.tensor("bias_token", bias_token_, {J}, {at::kInt});
  check.tensor("bias", bias_, {J}, {at::kFloat});
  check.tensor("cu_bias", cu_bias_, {entries}, {at::kInt});
  if (mask_) check.tensor("mask", *mask_, {R, DimRef("(V+31)/32", (V.size + 31) / 32)}, {at::kInt});
  check.tensor("mask_row", mask_row_, {T}, {at::kInt});
  const at::Tensor rows = logit_rows(logits), tokens = tokens_.contiguous(), parents = parents_.contiguous(),
                   cu_t = cu_t_.contiguous(), repetition = repetition_.contiguous(),
                   presence = presence_.contiguous(), frequency = frequency_.contiguous(),
                   history = history_.contiguous(), history_count = history_count_.contiguous(),
                   cu_history = cu_history_.contiguous(), bias_token = bias_token_.contiguous(),
                   bias = bias_.contiguous(), cu_bias = cu_bias_.contiguous(),
                   mask = mask_ ? mask_->contiguous() : at::Tensor(), mask_row = mask_row_.contiguous();
  if (kPlace == Place::kCpu) {
    check_values<int32_t>(check, "tokens", "in [0, " + std::to_string(V.size) + ")", tokens,
                          [&](int32_t x) { return x >= 0 && x < V.size; });
    check_trees(check, cu_t.const_data_ptr<int32_t>(), parents.const_data_ptr<int32_t>(), B.size, T.size);
    const auto finite = [](float x) { return std::isfinite(x); };
    check_values<float>(check, "repetition", "finite and >= 2^-126", repetition,
                        [](float x) { return std::isfinite(x) && x >= 0x1p-126f; });
    check_values<float>(check, "presence", "finite", presence, finite);
    check_values<float>(check, "frequency", "finite", frequency, finite);
    check_offsets(check, "cu_history", cu_history.const_data_ptr<int32_t>(), B.size, N.size);
    check_offsets(check, "cu_bias", cu_bias.const_data_ptr<int32_t>(), B.size, J.size);
    check_values<int32_t>(check, "history_count", ">= 0", history_count, [](int32_t n) { return n >= 0; });
    check_values<float>(check, "bias", "below inf, not NaN", bias,
                        [](float x) { return x < std::numeric_limits<float>::infinity(); });
    check_distinct(check, "history", history, cu_history, V.size);
    check_distinct(check, "bias_token", bias_token, cu_bias, V.size);
    check_values<int32_t>(check, "mask_row", "in [-1, " + std::to_string(R.size) + ")", mask_row,
                          [&](int32_t r) { return r >= -1 && r < R.size; });
  }
  at::Tensor out = at::empty({T.size, V.size}, logits.options());
  kLaunch(logits.device(), {rows.const_data_ptr<float>(),
                            tokens.const_data_ptr<int32_t>(),
                            parents.const_data_ptr<int32_t>(),
                            cu_t.const_data_ptr<int32_t>(),
                            repetition.const_data_ptr<float>(),
                            presence.const_data_ptr<float>(),
                            frequency.const_data_ptr<float>(),
                            history.const_data_ptr<int32_t>(),
                            history_count.const_data_ptr<int32_t>(),
                            cu_history.const_data_ptr<int32_t>(),
                            bias_token.const_data_ptr<int32_t>(),
                            bias.const_data_ptr<float>(),
                            cu_bias.const_data_ptr<int32_t>(),
                            mask.defined() ? mask.const_data_ptr<int32_t>() : nullptr,
                            mask_row.const_data_ptr<int32_t>(),
                            out.mutable_data_ptr<float>(),
                            T.size,
                            B.size,
                            V.size,
                            rows.stride(0)});
  return out;
}

}  // namespace pyspec
