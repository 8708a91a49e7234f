// SPDX-License-Identifier: Apache-2.0
// torch bindings of the CUDA kernels: the checks and allocations of csrc/bind, launched on the current stream
// of the tensors' device. Ops that are not here run as their specification on CUDA tensors.
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include "bind/rms_norm.h"
#include "bind/silu_mul.h"
#include "bind/softcap.h"

namespace pyspec {
namespace {

template <typename Params, void (*kKernel)(const Params&, void*)>
void on_cuda(at::Device device, const Params& p) {
  const c10::cuda::CUDAGuard guard(device);
  kKernel(p, c10::cuda::getCurrentCUDAStream(device.index()).stream());
}

constexpr auto kRmsNorm = on_cuda<RmsNormParams, rms_norm_cuda>;
constexpr auto kSiluMul = on_cuda<SiluMulParams, silu_mul_cuda>;
constexpr auto kSoftcap = on_cuda<SoftcapParams, softcap_cuda>;

}  // namespace

TORCH_LIBRARY_IMPL(pyspec, CUDA, m) {
  m.impl("rms_norm", rms_norm<kRmsNorm>);
  m.impl("add_rms_norm", add_rms_norm<kRmsNorm>);
  m.impl("silu_mul", silu_mul<kSiluMul>);
  m.impl("gelu_mul", gelu_mul<kSiluMul>);
  m.impl("softcap", softcap<kSoftcap>);
}

}  // namespace pyspec
