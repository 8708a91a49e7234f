// SPDX-License-Identifier: Apache-2.0
// sample: launch interface. Spec: pyspec/spec/sample.py.
#pragma once

#include <cstdint>

namespace pyspec {

struct SampleParams {
  const float* logits;         // [T, V], row stride logits_stride_t
  const int32_t* positions;    // [T] absolute position of the token to be emitted
  const float* temperature;    // [T]
  const int32_t* top_k;        // [T]
  const float* top_p;          // [T]
  const float* min_p;          // [T]
  const int64_t* seed;         // [T]
  const int32_t* stream;       // [T]
  int32_t* token;              // [T]
  float* logprob;              // [T] or null: not wanted (saves the pass that sums exponentials)
  int32_t* top_tokens;         // [T, num_logprobs]
  float* top_logprobs;         // [T, num_logprobs]
  int64_t T, V, num_logprobs;  // num_logprobs must be 0 without logprob
  int64_t logits_stride_t;
};

// Values must be in the ranges of the specification: the launch does not check them.
void sample_cpu(const SampleParams& p);
void sample_cuda(const SampleParams& p, void* stream);

}  // namespace pyspec
