// SPDX-License-Identifier: Apache-2.0
// torch bindings of the CUDA kernels: the checks and allocations of csrc/bind, launched on the current stream
// of the tensors' device. Ops that are not here run as their specification on CUDA tensors. With
// PYSPEC_EMULATED the same bindings serve CPU tensors in the namespace pyspec_cuda_emulated, and the kernels
// are those that tests/cuda_emulator has compiled for the CPU.
#include <torch/library.h>

#include "bind/rms_norm.h"
#include "bind/silu_mul.h"
#include "bind/softcap.h"

#if defined(PYSPEC_EMULATED)
#include "emulated_binding.h"
#define PYSPEC_CUDA_LIBRARY(m) TORCH_LIBRARY_IMPL(pyspec_cuda_emulated, CPU, m)
#else
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#define PYSPEC_CUDA_LIBRARY(m) TORCH_LIBRARY_IMPL(pyspec, CUDA, m)
#endif

// PYSPEC_CUDA_KERNEL(name, Params): launch_<name>(device, params) calls <name>_cuda of csrc/cuda/<name>.cu.
#if defined(PYSPEC_EMULATED)
#define PYSPEC_CUDA_KERNEL(name, Params)                           \
  void launch_##name(at::Device, const Params& p) {                \
    emulator::compiled_kernel<Params>(#name, #Params)(p, nullptr); \
  }
#else
#define PYSPEC_CUDA_KERNEL(name, Params)                                      \
  void launch_##name(at::Device device, const Params& p) {                    \
    const c10::cuda::CUDAGuard guard(device);                                 \
    name##_cuda(p, c10::cuda::getCurrentCUDAStream(device.index()).stream()); \
  }
#endif

namespace pyspec {
namespace {

PYSPEC_CUDA_KERNEL(rms_norm, RmsNormParams)
PYSPEC_CUDA_KERNEL(silu_mul, SiluMulParams)
PYSPEC_CUDA_KERNEL(softcap, SoftcapParams)

}  // namespace

PYSPEC_CUDA_LIBRARY(m) {
  m.impl("rms_norm", rms_norm<launch_rms_norm>);
  m.impl("add_rms_norm", add_rms_norm<launch_rms_norm>);
  m.impl("silu_mul", silu_mul<launch_silu_mul>);
  m.impl("gelu_mul", gelu_mul<launch_silu_mul>);
  m.impl("softcap", softcap<launch_softcap>);
}

}  // namespace pyspec
