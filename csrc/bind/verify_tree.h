// SPDX-License-Identifier: Apache-2.0
// verify_tree on torch tensors of any device with a kernel: checks, then one launch.
#pragma once

#include <ATen/ops/empty.h>

#include <algorithm>
#include <tuple>
#include <vector>

#include "bind/law.h"
#include "pyspec/verify_tree.h"

namespace pyspec {

using Walked = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// path, path_len, emitted, logprobs, top_tokens, top_logprobs of B requests, to be written.
inline Walked empty_walked(int64_t B, int64_t max_path, int64_t num_logprobs, const at::TensorOptions& ints,
                           const at::TensorOptions& floats) {
  return {at::empty({B, max_path}, ints),
          at::empty({B}, ints),
          at::empty({B, max_path}, ints),
          at::empty({B, max_path}, floats),
          at::empty({B, max_path, num_logprobs}, ints),
          at::empty({B, max_path, num_logprobs}, floats)};
}

inline std::string element(const char* name, int64_t i) { return name + ("[" + std::to_string(i) + "]"); }

// The offsets cu [B+1] must rise from 0 to `total`.
inline void check_offsets(const Checker& check, const char* name, const int32_t* cu, int64_t B,
                          int64_t total) {
  for (int64_t b = 0; b <= B; ++b) {
    const int64_t low = b == B ? total : b ? cu[b - 1] : 0, high = b ? total : 0;
    if (low <= cu[b] && cu[b] <= high) continue;
    const std::string rule =
        low == high ? std::to_string(low) : "in [" + std::to_string(low) + ", " + std::to_string(high) + "]";
    check.value(false, element(name, b).c_str(), rule, cu[b]);
  }
}

// Checks offsets and parents; returns the number of nodes of the longest path.
inline int64_t check_trees(const Checker& check, const int32_t* cu_t, const int32_t* parents, int64_t B,
                           int64_t T) {
  check_offsets(check, "cu_t", cu_t, B, T);
  std::vector<int64_t> nodes(size_t(T), 1);  // on the path to each node, itself included
  int64_t longest = 0;
  for (int64_t b = 0; b < B; ++b) {
    for (int64_t i = cu_t[b]; i < cu_t[b + 1]; ++i) {
      const int64_t local = i - cu_t[b];
      const bool ok = local ? parents[i] >= 0 && parents[i] < local : parents[i] == -1;
      check.value(ok, element("parents", i).c_str(), local ? "in [0, " + std::to_string(local) + ")" : "-1",
                  parents[i]);
      if (local) nodes[size_t(i)] = 1 + nodes[size_t(cu_t[b] + parents[i])];
      longest = std::max(longest, nodes[size_t(i)]);
    }
  }
  return longest;
}

template <Launch<VerifyTreeParams> kLaunch, Place kPlace>
Walked verify_tree(const at::Tensor& logits, const at::Tensor& tokens, const at::Tensor& parents,
                   const at::Tensor& cu_t, const at::Tensor& position, const at::Tensor& temperature,
                   const at::Tensor& top_k, const at::Tensor& top_p, const at::Tensor& min_p,
                   const at::Tensor& typical_p, const at::Tensor& seed, const at::Tensor& stream,
                   const std::optional<at::Tensor>& edited_, int64_t max_path, int64_t num_logprobs,
                   bool with_logprobs) {
  Dim T{"T"}, V{"V"}, B{"B"};
  Checker check("verify_tree");
  check.tensor("logits", logits, {T, V}, {at::kFloat});
  check.tensor("tokens", tokens, {T}, {at::kInt});
  check.tensor("parents", parents, {T}, {at::kInt});
  check.tensor(
      "cu_t", cu_t,
      {offsets_size(cu_t, {&position, &temperature, &top_k, &top_p, &min_p, &typical_p, &seed, &stream})},
      {at::kInt});
  const LawTensors law(check, B, "position", position, temperature, top_k, top_p, min_p, typical_p, seed,
                       stream);
  if (edited_) check.tensor("edited", *edited_, {T, V}, {at::kFloat});
  law.check_ranges(check, V.size, num_logprobs, with_logprobs, kPlace);
  const at::Tensor node_tokens = tokens.contiguous(), node_parents = parents.contiguous(),
                   offsets = cu_t.contiguous();
  int64_t longest = 0;
  if (kPlace == Place::kCpu) {
    check_values<int32_t>(check, "tokens", "in [0, " + std::to_string(V.size) + ")", node_tokens,
                          [&](int32_t x) { return x >= 0 && x < V.size; });
    longest = check_trees(check, offsets.const_data_ptr<int32_t>(), node_parents.const_data_ptr<int32_t>(),
                          B.size, T.size);
  }
  check.value(max_path >= longest, "max_path",
              ">= " + std::to_string(longest) + " (nodes of the longest path)", max_path);
  const at::Tensor rows = logit_rows(logits), edited = logit_rows(edited_);
  Walked walked = empty_walked(B.size, max_path, num_logprobs, tokens.options(), logits.options());
  auto& [path, path_len, emitted, logprobs, top_tokens, top_logprobs] = walked;
  const int64_t picks = kPlace == Place::kGpu && picks_all_nodes(T.size) ? T.size * (1 + num_logprobs) : 0;
  at::Tensor node_picks = at::empty({picks}, tokens.options());
  at::Tensor node_logprobs = at::empty({picks}, logits.options());
  kLaunch(logits.device(), {rows.const_data_ptr<float>(),
                            node_tokens.const_data_ptr<int32_t>(),
                            node_parents.const_data_ptr<int32_t>(),
                            offsets.const_data_ptr<int32_t>(),
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
                            node_picks.mutable_data_ptr<int32_t>(),
                            node_logprobs.mutable_data_ptr<float>(),
                            T.size,
                            B.size,
                            V.size,
                            max_path,
                            num_logprobs,
                            rows.stride(0),
                            rows_stride(edited),
                            with_logprobs});
  return walked;
}

}  // namespace pyspec
