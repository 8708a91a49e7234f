// SPDX-License-Identifier: Apache-2.0
// CPU embedding. One item is one token.
#include "pyspec/embedding.h"

#include "cpu/kernel.h"

namespace pyspec::PYSPEC_ISA {
namespace {

void token(const EmbeddingParams& p, int64_t t) {
  const auto* row = static_cast<const uint8_t*>(p.weight) + p.ids[t] * p.weight_stride_v * size_of(p.dtype);
  float* out = p.out + t * p.out_stride_t;
  const F32 scale = set1(p.scale);
  for (int64_t k = 0; k < p.K; k += kLanes) {
    const int n = int(std::min<int64_t>(kLanes, p.K - k));
    if (p.dtype == DType::kF32) {
      store_n(out + k, load_n(reinterpret_cast<const float*>(row) + k, n) * scale, n);
      continue;
    }
    const auto* half = reinterpret_cast<const uint16_t*>(row) + k;
    alignas(32) uint16_t rest[kLanes] = {};
    if (n < kLanes) {
      std::memcpy(rest, half, size_t(n) * 2);
      half = rest;
    }
    store_n(out + k, (p.dtype == DType::kBF16 ? load_bf16(half) : load_f16(half)) * scale, n);
  }
}

}  // namespace

void embedding(const EmbeddingParams& p) {
  if (p.T * p.K < 65536) {  // some 10 us of work
    for (int64_t t = 0; t < p.T; ++t) token(p, t);
  } else {
    parallel_for(p.T, [&](int64_t t) { token(p, t); });
  }
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(embedding, EmbeddingParams)
