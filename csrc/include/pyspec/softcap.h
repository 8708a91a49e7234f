// SPDX-License-Identifier: Apache-2.0
// softcap: launch interface. Spec: pyspec/spec/softcap.py.
#pragma once

#include <cstdint>

namespace pyspec {

struct SoftcapParams {
  const float* x;  // [M, K] contiguous
  float* out;      // [M, K] contiguous; may be x itself
  int64_t M, K;
  float cap;
};

void softcap_cpu(const SoftcapParams& p);
void softcap_cuda(const SoftcapParams& p, void* stream);  // a cudaStream_t

}  // namespace pyspec
