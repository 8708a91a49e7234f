// SPDX-License-Identifier: Apache-2.0
// CUDA softcap, sm_80 and newer. One thread is four elements of the flat matrix, wherever its rows end: a row
// of logits can be the only one, and 256000 long. tanhf is within 2 units in the last place. Run on an
// emulator only: neither checked nor timed on a GPU yet.
//
// Planted bugs: 1 tanh of x itself; 2 the last four elements stay unwritten; 3 single elements
// beyond the end are written.
#include "cuda/row.cuh"
#include "pyspec/softcap.h"

namespace pyspec {
namespace {

constexpr int kThreads = 256;

__device__ inline float capped(float x, float cap) { return cap * tanhf(PYSPEC_PLANTED(1) ? x : x / cap); }

template <bool kVector>
__global__ void __launch_bounds__(kThreads) cap_elements(const SoftcapParams p) {
  const int64_t i = 4 * (int64_t(blockIdx.x) * kThreads + threadIdx.x), left = p.M * p.K - i;
  if (left <= (PYSPEC_PLANTED(2) ? 4 : 0)) return;
  const float4 v = cuda::load4<kVector>(p.x + i, left);
  cuda::store4<kVector>(p.out + i,
                        {capped(v.x, p.cap), capped(v.y, p.cap), capped(v.z, p.cap), capped(v.w, p.cap)},
                        PYSPEC_PLANTED(3) ? 4 : left);
}

}  // namespace

void softcap_cuda(const SoftcapParams& p, void* stream) {
  const int64_t size = p.M * p.K, blocks = (size + 4 * kThreads - 1) / (4 * kThreads);
  if (size == 0) return;
  const auto kernel = size % 4 == 0 && cuda::aligned16(p.x) && cuda::aligned16(p.out) ? cap_elements<true>
                                                                                      : cap_elements<false>;
  PYSPEC_LAUNCH(kernel, unsigned(blocks), kThreads, 0, stream, p);
}

}  // namespace pyspec
