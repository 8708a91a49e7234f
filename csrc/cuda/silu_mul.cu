// SPDX-License-Identifier: Apache-2.0
// CUDA silu_mul and gelu_mul, sm_80 and newer: both are g / (1 + exp(-s)) * up with s = g, or s = sqrt(8/pi)
// (g + 0.044715 g^3), which is GELU's tanh approximation. One block is a part of one row, one thread four of
// its columns. Run on an emulator only: neither checked nor timed on a GPU yet.
//
// Planted bugs: 1 gate and up change places; 2 a row's last columns stay unwritten where they
// are no whole block; 3 the exponent's sign; 4 GELU's cubic term is dropped.
#include "cuda/row.cuh"
#include "pyspec/silu_mul.h"

namespace pyspec {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kBlockColumns = 4 * kThreads;

template <bool kGelu>
__device__ inline float gate(float g, float up) {
  const float s = kGelu ? g * fmaf(g * g, PYSPEC_PLANTED(4) ? 0.0f : 0.0713548163f, 1.59576912f) : g;
  return g / (1.0f + expf(PYSPEC_PLANTED(3) ? s : -s)) * up;
}

template <bool kVector, bool kGelu>
__global__ void __launch_bounds__(kThreads) gate_rows(const SiluMulParams p) {
  const int64_t f = blockIdx.y * kBlockColumns + 4 * threadIdx.x, left = p.F - f;
  if (left <= (PYSPEC_PLANTED(2) ? 4 : 0)) return;
  const int64_t m = blockIdx.x;
  const float* row = p.gate_up + m * p.gate_up_stride_m + f;
  const float4 first = cuda::load4<kVector>(row, left), second = cuda::load4<kVector>(row + p.F, left);
  const float4 g = PYSPEC_PLANTED(1) ? second : first, up = PYSPEC_PLANTED(1) ? first : second;
  cuda::store4<kVector>(
      p.out + m * p.out_stride_m + f,
      {gate<kGelu>(g.x, up.x), gate<kGelu>(g.y, up.y), gate<kGelu>(g.z, up.z), gate<kGelu>(g.w, up.w)}, left);
}

}  // namespace

void silu_mul_cuda(const SiluMulParams& p, void* stream) {
  if (p.M * p.F == 0) return;
  const bool vector = p.F % 4 == 0 && cuda::aligned16(p.gate_up, p.gate_up_stride_m) &&
                      cuda::aligned16(p.out, p.out_stride_m);
  const auto kernel = vector ? (p.gelu ? gate_rows<true, true> : gate_rows<true, false>)
                             : (p.gelu ? gate_rows<false, true> : gate_rows<false, false>);
  PYSPEC_LAUNCH(kernel, cuda::grid_of(p.M, p.F, kBlockColumns), kThreads, 0, stream, p);
}

}  // namespace pyspec
