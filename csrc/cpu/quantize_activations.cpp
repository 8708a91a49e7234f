// SPDX-License-Identifier: Apache-2.0
// CPU quantisation of activations to int8, a scale per row and group of 32. One item is one row.
#include "pyspec/quantize_activations.h"

#include "cpu/kernel.h"

namespace pyspec::PYSPEC_ISA {
namespace {

constexpr int64_t kSerialElements = 16384;  // 4 us of work: less is not worth waking a thread for
constexpr float kTiny = 1e-30f;             // groups below are zeros: 127 / amax stays finite and normal

void quantize_row(const QuantizeActivationsParams& p, const Activations& a, int64_t m) {
  const int64_t G = p.K / kGroup, tile = m / kRowTile, r = m % kRowTile;
  const int64_t R = std::min(kRowTile, p.M - tile * kRowTile), first = tile * kRowTile * G;
  const float* x = p.x + m * p.x_stride_m;
  const I32 magnitude = iset1(0x7fffffff);
  for (int64_t g = 0; g < G; ++g, x += kGroup) {
    const F32 x0 = load(x), x1 = load(x + 16);
    // As integers the bits of magnitudes are in order, and NaN is the largest.
    const int32_t most = reduce_max(max(bits(x0) & magnitude, bits(x1) & magnitude));
    const bool finite = most < 0x7f800000;
    const float amax = bits_to_f32(uint32_t(most));
    const bool zeros = !finite || amax < kTiny;
    const F32 inverse = set1(zeros ? 0.0f : 127.0f / amax);
    const I32 q0 = zeros ? iset1(0) : round_i32(x0 * inverse);
    const I32 q1 = zeros ? iset1(0) : round_i32(x1 * inverse);
    const int64_t at = first + g * R + r;
    store_i8(a.q + at * kGroup, q0);
    store_i8(a.q + at * kGroup + 16, q1);
    const float scale = !finite ? std::numeric_limits<float>::quiet_NaN() : zeros ? 0.0f : amax / 127.0f;
    const int32_t s0 = reduce_add(q0), s1 = reduce_add(q1);
    a.scale[at] = scale;
    a.sum[at] = scale * float(s0 + s1);
    int32_t* sums = a.negative_sums + (first + g * R) * 3 + r;
    sums[0] = -(s0 + s1);
    sums[R] = -s0;
    sums[2 * R] = -s1;
  }
}

}  // namespace

void quantize_activations(const QuantizeActivationsParams& p) {
  const Activations a(p.workspace, p.M, p.K);
  if (p.M * p.K < kSerialElements) {
    for (int64_t m = 0; m < p.M; ++m) quantize_row(p, a, m);
  } else {
    parallel_for(p.M, [&](int64_t m) { quantize_row(p, a, m); });
  }
}

}  // namespace pyspec::PYSPEC_ISA

PYSPEC_DISPATCH(quantize_activations, QuantizeActivationsParams)
