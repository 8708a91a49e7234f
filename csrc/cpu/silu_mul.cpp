// SPDX-License-Identifier: Apache-2.0
// CPU silu_mul and gelu_mul: both are g / (1 + exp(-s)) * up with s = g, or s = sqrt(8/pi) (g + 0.044715
// g^3), which is GELU's tanh approximation. One item is a part of one row, or of a tile of rows where they
// are quantised.
#include "pyspec/silu_mul.h"

#include "cpu/kernel.h"
#include "cpu/quantize_units.h"

namespace pyspec::PYSPEC_ISA {
namespace {

constexpr int64_t kItemColumns = 4096;
constexpr int64_t kSerialElements = 8192;  // 3 us of work

// e^-s, infinity from s = -88 on. The rounding error of -s log2(e) is made good in first order: it would cost
// 2^-17 of the result at s = 80. NaN gives a number: the caller's numerator is NaN as well.
inline F32 exp_minus(F32 s) {
  const F32 lowest = set1(-88.0f), log2e = set1(-1.44269504f), x = min(max(s, lowest), set1(100.0f));
  const F32 t = x * log2e, error = fma(x, set1(-1.92596299e-8f), fma(x, log2e, zero() - t));
  const F32 e = exp2(t);
  const F32 above = keep_ge(lowest, s, set1(std::numeric_limits<float>::infinity()));
  return fma(e * error, set1(0.693147181f), e) + above;
}

template <bool kGelu>
inline F32 gate(F32 g, F32 up) {
  F32 s = g;
  if (kGelu) s = g * fma(g * g, set1(0.0713548163f), set1(1.59576912f));
  return g / (set1(1.0f) + exp_minus(s)) * up;
}

template <bool kGelu>
void columns(const float* g, const float* up, float* out, int64_t count) {
  for (; count >= kLanes; count -= kLanes, g += kLanes, up += kLanes, out += kLanes)
    store(out, gate<kGelu>(load(g), load(up)));
  if (count) store_n(out, gate<kGelu>(load_n(g, int(count)), load_n(up, int(count))), int(count));
}

template <bool kGelu>
void quantized(const SiluMulParams& p) {
  quantize_rows(p.workspace, p.M, p.F, p.M * p.F >= kSerialElements, [&](int64_t m, int64_t k) {
    const float* g = p.gate_up + m * p.gate_up_stride_m + k;
    return gate<kGelu>(load(g), load(g + p.F));
  });
}

}  // namespace

void silu_mul(const SiluMulParams& p) {
  if (p.workspace) return p.gelu ? quantized<true>(p) : quantized<false>(p);
  const int64_t parts = (p.F + kItemColumns - 1) / kItemColumns;
  auto part = [&](int64_t item) {
    const int64_t m = item / parts, first = item % parts * kItemColumns;
    const float* g = p.gate_up + m * p.gate_up_stride_m + first;
    const auto run = p.gelu ? columns<true> : columns<false>;
    run(g, g + p.F, p.out + m * p.out_stride_m + first, std::min(kItemColumns, p.F - first));
  };
  if (p.M * p.F < kSerialElements) {
    for (int64_t i = 0; i < p.M * parts; ++i) part(i);
  } else {
    parallel_for(p.M * parts, part);
  }
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(silu_mul, SiluMulParams)
