// SPDX-License-Identifier: Apache-2.0
// sample: launch interface. Spec: pyspec/spec/sample.py.
#pragma once

#include <cstdint>

namespace pyspec {

struct SampleParams {
  const float* logits;       // [T, V], row stride logits_stride_t
  const int32_t* positions;  // [T] absolute position of the token to be emitted
  const float* temperature;  // [T]
  const int32_t* top_k;      // [T]
  const float* top_p;        // [T]
  const float* min_p;        // [T]
  const float* typical_p;    // [T]
  const int64_t* seed;       // [T]
  const int32_t* stream;     // [T]
  const float* edited;  // [T, V], row stride edited_stride_t, or null: the rows to pick from are `logits`
  int32_t* token;       // [T]
  float* logprob;       // [T]
  int32_t* top_tokens;  // [T, num_logprobs]
  float* top_logprobs;  // [T, num_logprobs]
  int64_t T, V, num_logprobs;
  int64_t logits_stride_t, edited_stride_t;
  bool with_logprobs;  // else num_logprobs is 0, and the pass that sums exponentials is saved
};

// Values must be in the ranges of the specification: the launch does not check them.
void sample_cpu(const SampleParams& p);
void sample_cuda(const SampleParams& p, void* stream);

}  // namespace pyspec
