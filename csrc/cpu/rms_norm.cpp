// SPDX-License-Identifier: Apache-2.0
// CPU rms_norm and add_rms_norm. One item is one row; k is summed in 16 lanes, then in the fixed tree of
// reduce_add.
#include "pyspec/rms_norm.h"

#include "cpu/kernel.h"

namespace pyspec::PYSPEC_ISA {
namespace {

// A row is cheap (0.2 us at K = 576): fewer elements than this are not worth waking a thread for.
constexpr int64_t kSerialElements = 32768;

void norm_row(const RmsNormParams& p, int64_t m) {
  const float* x = p.x + m * p.x_stride_m;
  float* out = p.out + m * p.K;
  const int64_t full = p.K / kLanes * kLanes;
  const int rest = int(p.K - full);
  if (p.residual) {
    float* residual = p.residual + m * p.K;
    for (int64_t k = 0; k < full; k += kLanes) store(residual + k, load(residual + k) + load(x + k));
    if (rest) store_n(residual + full, load_n(residual + full, rest) + load_n(x + full, rest), rest);
    x = residual;
  }
  F32 sum = zero();
  for (int64_t k = 0; k < full; k += kLanes) sum = fma(load(x + k), load(x + k), sum);
  if (rest) sum = fma(load_n(x + full, rest), load_n(x + full, rest), sum);
  const F32 scale = set1(1.0f / std::sqrt(reduce_add(sum) / float(p.K) + p.eps));
  for (int64_t k = 0; k < full; k += kLanes) store(out + k, load(x + k) * scale * load(p.weight + k));
  if (rest) store_n(out + full, load_n(x + full, rest) * scale * load_n(p.weight + full, rest), rest);
}

}  // namespace

void rms_norm(const RmsNormParams& p) {
  if (p.M * p.K < kSerialElements) {
    for (int64_t m = 0; m < p.M; ++m) norm_row(p, m);
  } else {
    parallel_for(p.M, [&](int64_t m) { norm_row(p, m); });
  }
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(rms_norm, RmsNormParams)
