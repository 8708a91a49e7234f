// SPDX-License-Identifier: Apache-2.0
// sample on torch tensors of any device with a kernel: checks, then one launch.
#pragma once

#include <ATen/ops/empty.h>

#include <tuple>

#include "bind/law.h"
#include "pyspec/sample.h"

namespace pyspec {

using Picked = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

template <Launch<SampleParams> kLaunch, Place kPlace>
Picked sample(const at::Tensor& logits, const at::Tensor& positions, const at::Tensor& temperature,
              const at::Tensor& top_k, const at::Tensor& top_p, const at::Tensor& min_p,
              const at::Tensor& typical_p, const at::Tensor& seed, const at::Tensor& stream,
              const std::optional<at::Tensor>& edited_, int64_t num_logprobs, bool with_logprobs) {
  Dim T{"T"}, V{"V"};
  Checker check("sample");
  check.tensor("logits", logits, {T, V}, {at::kFloat});
  const LawTensors law(check, T, "positions", positions, temperature, top_k, top_p, min_p, typical_p, seed,
                       stream);
  if (edited_) check.tensor("edited", *edited_, {T, V}, {at::kFloat});
  law.check_ranges(check, V.size, num_logprobs, with_logprobs, kPlace);
  const at::Tensor rows = logit_rows(logits), edited = logit_rows(edited_);
  at::Tensor token = at::empty({T.size}, positions.options());
  at::Tensor logprob = at::empty({T.size}, logits.options());
  at::Tensor top_tokens = at::empty({T.size, num_logprobs}, positions.options());
  at::Tensor top_logprobs = at::empty({T.size, num_logprobs}, logits.options());
  kLaunch(logits.device(), {rows.const_data_ptr<float>(),
                            law.position.const_data_ptr<int32_t>(),
                            law.temperature.const_data_ptr<float>(),
                            law.top_k.const_data_ptr<int32_t>(),
                            law.top_p.const_data_ptr<float>(),
                            law.min_p.const_data_ptr<float>(),
                            law.typical_p.const_data_ptr<float>(),
                            law.seed.const_data_ptr<int64_t>(),
                            law.stream.const_data_ptr<int32_t>(),
                            rows_data(edited),
                            token.mutable_data_ptr<int32_t>(),
                            logprob.mutable_data_ptr<float>(),
                            top_tokens.mutable_data_ptr<int32_t>(),
                            top_logprobs.mutable_data_ptr<float>(),
                            T.size,
                            V.size,
                            num_logprobs,
                            rows.stride(0),
                            rows_stride(edited),
                            with_logprobs});
  return {token, logprob, top_tokens, top_logprobs};
}

}  // namespace pyspec
