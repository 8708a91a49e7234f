// SPDX-License-Identifier: Apache-2.0
// verify_drawn on torch tensors of any device with a kernel: checks, then one launch.
#pragma once

#include <set>

#include "bind/verify_tree.h"
#include "pyspec/verify_drawn.h"

namespace pyspec {

// The rules between the children of one node.
inline void check_siblings(const Checker& check, const int32_t* tokens, const int32_t* parents,
                           const int32_t* cu_t, const int32_t* drawn, const int32_t* draft_row, int64_t B) {
  for (int64_t b = 0; b < B; ++b) {
    std::vector<int> first(size_t(cu_t[b + 1] - cu_t[b]), -1);  // whether a node's first child is iid
    std::set<std::pair<int64_t, int32_t>> seen;
    for (int64_t i = cu_t[b] + 1; i < cu_t[b + 1]; ++i) {
      const int64_t parent = cu_t[b] + parents[i];
      check.value(drawn[i] == 0 || draft_row[parent] >= 0, element("draft_row", parent).c_str(),
                  ">= 0 above " + element("drawn", i) + " = " + std::to_string(drawn[i]), draft_row[parent]);
      int& iid = first[size_t(parents[i])];
      if (iid < 0) iid = drawn[i] == 1;
      check.value(iid == (drawn[i] == 1), element("drawn", i).c_str(),
                  "1 for all children of a node or for none", drawn[i]);
      check.value(drawn[i] == 1 || seen.emplace(parent, tokens[i]).second, element("tokens", i).c_str(),
                  "different from those of its siblings", tokens[i]);
    }
  }
}

template <Launch<VerifyDrawnParams> kLaunch, Place kPlace>
Walked verify_drawn(const at::Tensor& logits, const at::Tensor& tokens_, const at::Tensor& parents_,
                    const at::Tensor& cu_t_, const at::Tensor& drawn_, const at::Tensor& draft_logits,
                    const at::Tensor& draft_row_, const at::Tensor& draft_temperature_,
                    const at::Tensor& step, const at::Tensor& temperature, const at::Tensor& top_k,
                    const at::Tensor& top_p, const at::Tensor& min_p, const at::Tensor& typical_p,
                    const at::Tensor& seed, const at::Tensor& stream,
                    const std::optional<at::Tensor>& edited_, c10::string_view walk, int64_t max_path,
                    int64_t num_logprobs, bool with_logprobs) {
  Dim T{"T"}, V{"V"}, B{"B"}, R{"R"};
  Checker check("verify_drawn");
  check.tensor("logits", logits, {T, V}, {at::kFloat});
  check.tensor("tokens", tokens_, {T}, {at::kInt});
  check.tensor("parents", parents_, {T}, {at::kInt});
  check.tensor("cu_t", cu_t_,
               {offsets_size(cu_t_, {&draft_temperature_, &step, &temperature, &top_k, &top_p, &min_p,
                                     &typical_p, &seed, &stream})},
               {at::kInt});
  check.tensor("drawn", drawn_, {T}, {at::kInt});
  check.tensor("draft_logits", draft_logits, {R, V}, {at::kFloat});
  check.tensor("draft_row", draft_row_, {T}, {at::kInt});
  check.tensor("draft_temperature", draft_temperature_, {B}, {at::kFloat});
  const LawTensors law(check, B, "step", step, temperature, top_k, top_p, min_p, typical_p, seed, stream);
  if (edited_) check.tensor("edited", *edited_, {T, V}, {at::kFloat});
  law.check_ranges(check, V.size, num_logprobs, with_logprobs, kPlace);
  const DrawnWalk kind = walk == "top_down" ? DrawnWalk::kTopDown
                         : walk == "target" ? DrawnWalk::kTarget
                                            : DrawnWalk::kTraversal;
  check.value(kind != DrawnWalk::kTraversal || walk == "traversal", "walk", "top_down|traversal|target",
              walk);
  const at::Tensor tokens = tokens_.contiguous(), parents = parents_.contiguous(), cu_t = cu_t_.contiguous(),
                   drawn = drawn_.contiguous(), draft_row = draft_row_.contiguous(),
                   draft_temperature = draft_temperature_.contiguous();
  int64_t longest = 0;
  if (kPlace == Place::kCpu) {
    check_values<int32_t>(check, "tokens", "in [0, " + std::to_string(V.size) + ")", tokens,
                          [&](int32_t x) { return x >= 0 && x < V.size; });
    longest =
        check_trees(check, cu_t.const_data_ptr<int32_t>(), parents.const_data_ptr<int32_t>(), B.size, T.size);
  }
  check.value(max_path >= longest, "max_path",
              ">= " + std::to_string(longest) + " (nodes of the longest path)", max_path);
  if (kPlace == Place::kCpu) {
    check_values<float>(check, "draft_temperature", "finite and >= 0", draft_temperature,
                        [](float x) { return std::isfinite(x) && x >= 0; });
    check_values<int32_t>(check, "draft_row", "in [-1, " + std::to_string(R.size) + ")", draft_row,
                          [&](int32_t x) { return x >= -1 && x < R.size; });
    check_values<int32_t>(check, "drawn", "in [0, 2]", drawn, [](int32_t x) { return x >= 0 && x <= 2; });
    if (kind != DrawnWalk::kTarget)
      check_siblings(check, tokens.const_data_ptr<int32_t>(), parents.const_data_ptr<int32_t>(),
                     cu_t.const_data_ptr<int32_t>(), drawn.const_data_ptr<int32_t>(),
                     draft_row.const_data_ptr<int32_t>(), B.size);
  }
  const at::Tensor rows = logit_rows(logits), draft_rows = logit_rows(draft_logits),
                   edited = logit_rows(edited_);
  Walked walked = empty_walked(B.size, max_path, num_logprobs, tokens.options(), logits.options());
  auto& [path, path_len, emitted, logprobs, top_tokens, top_logprobs] = walked;
  const int64_t bytes = kPlace == Place::kGpu ? verify_drawn_workspace(T.size, B.size, V.size) : 0;
  at::Tensor workspace = at::empty({bytes}, logits.options().dtype(at::kByte));
  kLaunch(logits.device(), {rows.const_data_ptr<float>(),
                            tokens.const_data_ptr<int32_t>(),
                            parents.const_data_ptr<int32_t>(),
                            cu_t.const_data_ptr<int32_t>(),
                            drawn.const_data_ptr<int32_t>(),
                            draft_rows.const_data_ptr<float>(),
                            draft_row.const_data_ptr<int32_t>(),
                            draft_temperature.const_data_ptr<float>(),
                            law.position.const_data_ptr<int32_t>(),
                            law.temperature.const_data_ptr<float>(),
                            law.top_k.const_data_ptr<int32_t>(),
                            law.top_p.const_data_ptr<float>(),
                            law.min_p.const_data_ptr<float>(),
                            law.typical_p.const_data_ptr<float>(),
                            law.seed.const_data_ptr<int64_t>(),
                            law.stream.const_data_ptr<int32_t>(),
                            rows_data(edited),
                            path.mutable_data_ptr<int32_t>(),
                            path_len.mutable_data_ptr<int32_t>(),
                            emitted.mutable_data_ptr<int32_t>(),
                            logprobs.mutable_data_ptr<float>(),
                            top_tokens.mutable_data_ptr<int32_t>(),
                            top_logprobs.mutable_data_ptr<float>(),
                            T.size,
                            B.size,
                            V.size,
                            max_path,
                            num_logprobs,
                            rows.stride(0),
                            draft_rows.stride(0),
                            rows_stride(edited),
                            kind,
                            with_logprobs,
                            workspace.mutable_data_ptr()});
  return walked;
}

}  // namespace pyspec
