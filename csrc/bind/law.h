// SPDX-License-Identifier: Apache-2.0
// Checks that sample, verify_tree and build_tree share: the rules and messages of pyspec/spec/pipeline.py.
#pragma once

#include <cmath>
#include <optional>
#include <string>

#include "bind/check.h"
#include "bind/launch.h"

namespace pyspec {

inline std::string value_text(int64_t x) { return std::to_string(x); }
inline std::string value_text(int32_t x) { return std::to_string(x); }
inline std::string value_text(float x) {  // as Python's format(x, "g")
  char text[32];
  std::snprintf(text, sizeof text, "%g", double(x));
  return std::isnan(x) ? "nan" : text;
}

// The first element of a contiguous tensor [N] that breaks the rule is refused by name, index and value.
template <typename T, typename Ok>
void check_values(const Checker& check, const char* name, const std::string& rule, const at::Tensor& values,
                  Ok ok) {
  const T* data = values.const_data_ptr<T>();
  for (int64_t i = 0; i < values.numel(); ++i)
    if (!ok(data[i]))
      check.value(false, (name + ("[" + std::to_string(i) + "]")).c_str(), rule, value_text(data[i]));
}

// Offsets come before the tensors that have B entries: B is the size of the first of those that is a vector,
// or, where none is (refused later), what the offsets say.
inline DimRef offsets_size(const at::Tensor& cu_t, std::initializer_list<const at::Tensor*> per_request) {
  int64_t batch = -1;
  for (const at::Tensor* t : per_request)
    if (batch < 0 && t->dim() == 1) batch = t->size(0);
  if (batch < 0 && cu_t.dim() == 1) batch = cu_t.size(0) - 1;
  return DimRef("B+1", batch + 1);
}

inline void check_vocab(const Checker& check, int64_t vocab) {
  check.value(vocab >= 1, "logits", "[T, V] with V >= 1", "V=0");
}

// Rows of logits with neighbouring values; undefined where there are none.
inline at::Tensor logit_rows(const std::optional<at::Tensor>& rows) {
  return !rows ? at::Tensor() : rows->stride(1) == 1 ? *rows : rows->contiguous();
}
inline const float* rows_data(const at::Tensor& rows) {
  return rows.defined() ? rows.const_data_ptr<float>() : nullptr;
}
inline int64_t rows_stride(const at::Tensor& rows) { return rows.defined() ? rows.stride(0) : 0; }

// One request's or row's sampling parameters, contiguous.
struct LawTensors {
  at::Tensor position, temperature, top_k, top_p, min_p, typical_p, seed, stream;

  LawTensors(Checker& check, Dim& letter, const char* position_name, const at::Tensor& position_,
             const at::Tensor& temperature_, const at::Tensor& top_k_, const at::Tensor& top_p_,
             const at::Tensor& min_p_, const at::Tensor& typical_p_, const at::Tensor& seed_,
             const at::Tensor& stream_)
      : position_name_(position_name) {
    check.tensor(position_name, position_, {letter}, {at::kInt});
    check.tensor("temperature", temperature_, {letter}, {at::kFloat});
    check.tensor("top_k", top_k_, {letter}, {at::kInt});
    check.tensor("top_p", top_p_, {letter}, {at::kFloat});
    check.tensor("min_p", min_p_, {letter}, {at::kFloat});
    check.tensor("typical_p", typical_p_, {letter}, {at::kFloat});
    check.tensor("seed", seed_, {letter}, {at::kLong});
    check.tensor("stream", stream_, {letter}, {at::kInt});
    position = position_.contiguous();
    temperature = temperature_.contiguous();
    top_k = top_k_.contiguous();
    top_p = top_p_.contiguous();
    min_p = min_p_.contiguous();
    typical_p = typical_p_.contiguous();
    seed = seed_.contiguous();
    stream = stream_.contiguous();
  }

  // Values are the caller's business on a GPU: to read them here would wait for it.
  void check_ranges(const Checker& check, int64_t vocab, int64_t num_logprobs, bool with_logprobs,
                    Place place) const {
    constexpr int64_t kMaxLogprobs = 1024;
    check_vocab(check, vocab);
    const int64_t most = std::min(vocab, kMaxLogprobs);
    check.value(num_logprobs >= 0 && num_logprobs <= most, "num_logprobs",
                "in [0, " + std::to_string(most) + "]", num_logprobs);
    check.value(with_logprobs || num_logprobs == 0, "num_logprobs", "0 without logprobs", num_logprobs);
    if (place == Place::kGpu) return;
    check_values<int32_t>(check, position_name_, ">= 0", position, [](int32_t x) { return x >= 0; });
    check_values<float>(check, "temperature", "finite and >= 0", temperature,
                        [](float x) { return std::isfinite(x) && x >= 0; });
    check_values<int32_t>(check, "top_k", "in [0, " + std::to_string(vocab) + "]", top_k,
                          [=](int32_t x) { return x >= 0 && x <= vocab; });
    check_values<float>(check, "top_p", "in (0, 1]", top_p, [](float x) { return x > 0 && x <= 1; });
    check_values<float>(check, "min_p", "in [0, 1]", min_p, [](float x) { return x >= 0 && x <= 1; });
    check_values<float>(check, "typical_p", "in (0, 1]", typical_p, [](float x) { return x > 0 && x <= 1; });
  }

 private:
  const char* position_name_;
};

}  // namespace pyspec
